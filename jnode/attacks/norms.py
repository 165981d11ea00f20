"""Norms of perturbations, projections onto balls, and steepest directions."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Images = Float[Array, "batch height width channels"]
NORMS = ("linf", "l2", "l1")

# The L2 ball is made smaller by this fraction, so that rounding never leaves it.
_MARGIN = 1e-6
# Bisections of a threshold; what is left of the interval is interpolated.
_BISECTIONS = 24


def wide(per_sample: Array) -> Array:
    """One number for each sample, reshaped to broadcast against images."""
    return per_sample[:, None, None, None]


def choose(mask: Bool[Array, " batch"], new: Any, old: Any) -> Any:
    """Selects for each sample from one of two trees of images and numbers."""

    def pick(a, b):
        return jnp.where(wide(mask) if a.ndim == 4 else mask, a, b)

    return jax.tree.map(pick, new, old)


def size(perturbation: Images, norm: str) -> Float[Array, " batch"]:
    """The norm of each sample's perturbation."""
    # Flat: over one or three channels XLA's CPU backend takes sums one by one.
    flat = perturbation.reshape(len(perturbation), -1)
    if norm == "linf":
        return jnp.max(jnp.abs(flat), axis=1)
    if norm == "l1":
        return jnp.sum(jnp.abs(flat), axis=1)
    return jnp.sqrt(jnp.sum(flat**2, axis=1))


def shortened(
    perturbation: Images, images: Images, epsilon: Float[Array, " batch"], norm: str
) -> Images:
    r"""The nearest perturbation of at most this norm; in L1 of those that keep the
    images in [0, 1].

    In L1 every pixel $i$ shrinks by the same $t$ but moves by at most the room $r_i$
    that [0, 1] leaves it: $|d_i| = \min(\max(|z_i| - t, 0), r_i)$, where $t$ is the
    least for which the norm is at most epsilon. The ball is made smaller by a bound on
    the rounding error of the norm.
    """
    if norm == "linf":
        return jnp.clip(perturbation, -wide(epsilon), wide(epsilon))
    if norm == "l1":
        length, most = _flat(jnp.abs(perturbation)), _flat(room(images, perturbation))
        epsilon = epsilon * (1 - length.shape[1] * jnp.finfo(length.dtype).eps)
        shorter = _down_to(
            lambda t: jnp.clip(length - t, 0, most), 1.0, epsilon, length
        )
        return jnp.sign(perturbation) * shorter.reshape(images.shape)
    length = wide(size(perturbation, norm))
    limit = wide(epsilon) * (1 - _MARGIN)
    return perturbation * jnp.minimum(1.0, limit / jnp.maximum(length, 1e-12))


def unit(x: Images, norm: str) -> Images:
    """Each sample scaled to norm 1; 0 stays 0."""
    # Scaled first: squares of gradients below 1e-19 would vanish in float32.
    top = wide(size(x, "linf"))
    scaled = x / jnp.maximum(top, 1e-30)
    # XLA may divide once, by the product of both, which must not vanish either.
    return scaled / wide(jnp.maximum(size(scaled, norm), 1e-6))


def steepest(
    gradient: Images,
    images: Images,
    length: Float[Array, " batch"],
    norm: str,
    fraction: float | Float[Array, " batch"] = 0.0,
) -> Images:
    """The change of this norm along which the loss grows fastest.

    In L1 it is sparse and keeps the images in [0, 1]: the pixels of the largest
    gradients move, each at most by its room and by an equal part of the length, such
    that at least this `fraction` of all pixels moves.
    """
    if norm == "linf":
        return wide(length) * jnp.sign(gradient)
    if norm == "l2":
        return wide(length) * unit(gradient, norm)
    pixels = gradient[0].size
    part = length / jnp.maximum(fraction * pixels, 1.0)
    most = jnp.minimum(room(images, gradient), wide(part))
    return jnp.sign(gradient) * filled(jnp.abs(gradient), most, length)


def room(
    images: Float[Array, "*pixels"], direction: Float[Array, "*pixels"]
) -> Float[Array, "*pixels"]:
    """How far each pixel can move in [0, 1] in this direction, positive or not."""
    return jnp.where(direction > 0, 1 - images, images)


def filled(
    weights: Images,
    most: Images,
    limit: Float[Array, " batch"],
    cost: Float[Array, "..."] | float = 1.0,
) -> Images:
    """The pixels of the largest weights filled up to `most`, until the cost of what is
    filled reaches the limit.

    It maximises the inner product with weights of 0 or more if each pixel costs 1, and
    reaches a given inner product at the least cost if the cost is the weight. Pixels of
    weight 0 are left out.
    """
    flat, most = _flat(weights), _flat(most)
    cost = cost if isinstance(cost, float) else _flat(cost)
    found = _down_to(lambda t: jnp.where(flat > t, most, 0), cost, limit, flat)
    return found.reshape(weights.shape)


def _flat(images):
    return images.reshape(len(images), -1)


def _down_to(family, cost, limit, top):
    """The member of a family that shrinks to 0 as its threshold grows up to the largest
    entry of `top`, at which the sum of its costs is the limit, or the first one if that
    is below.

    Between the last two thresholds of the bisection it is interpolated, so the limit is
    met up to rounding.
    """
    limit = limit[:, None]

    def total(member):
        return jnp.sum(cost * member, axis=1, keepdims=True)

    def bisect(_, interval):
        low, high = interval
        middle = (low + high) / 2
        above = total(family(middle)) > limit
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    high = jnp.max(top, axis=1, keepdims=True)
    interval = jnp.zeros_like(high), high
    low, high = jax.lax.fori_loop(0, _BISECTIONS, bisect, interval)
    more, less = family(low), family(high)
    spare, gap = limit - total(less), total(more) - total(less)
    share = jnp.where(gap > spare, spare / jnp.where(gap > 0, gap, 1), 1)
    return less + jnp.clip(share, 0, 1) * (more - less)
