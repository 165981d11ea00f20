"""Balls around images: their projections, steepest steps and random points."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

Images = Float[Array, "batch height width channels"]
NORMS = ("linf", "l2")

# The L2 ball is taken smaller by this share, so that rounding never leaves it.
_MARGIN = 1e-6


def wide(per_sample: Array) -> Array:
    """One number a sample, ready to meet images."""
    return per_sample[:, None, None, None]


def choose(mask: Bool[Array, " batch"], new: Any, old: Any) -> Any:
    """Sample by sample, one of two trees of images and numbers."""

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


def project(
    adversarial: Images, images: Images, epsilon: Float[Array, ""], norm: str
) -> Images:
    """The nearest image in the ball, then clipped to [0, 1].

    Clipping moves every pixel towards the original, so the ball is not left.
    """
    delta = adversarial - images
    if norm == "linf":
        delta = jnp.clip(delta, -epsilon, epsilon)
    else:
        length = wide(size(delta, norm))
        limit = epsilon * (1 - _MARGIN)
        delta = delta * jnp.minimum(1.0, limit / jnp.maximum(length, 1e-12))
    return jnp.clip(images + delta, 0.0, 1.0)


def steepest(gradient: Images, norm: str) -> Images:
    """The direction of norm 1 in which the loss grows fastest."""
    if norm == "linf":
        return jnp.sign(gradient)
    # Scaled first: squares of gradients below 1e-19 would vanish in float32.
    top = wide(size(gradient, "linf"))
    scaled = gradient / jnp.maximum(top, 1e-30)
    return scaled / wide(jnp.maximum(size(scaled, norm), 1e-12))


def random_start(
    images: Images, epsilon: Float[Array, ""], norm: str, key: PRNGKeyArray
) -> Images:
    """A random image in the ball: uniform (Linf), or uniform in the L2 ball."""
    if norm == "linf":
        noise = jr.uniform(key, images.shape, images.dtype, -1.0, 1.0)
        return project(images + epsilon * noise, images, epsilon, norm)
    direction_key, radius_key = jr.split(key)
    direction = steepest(jr.normal(direction_key, images.shape, images.dtype), norm)
    dimension = math.prod(images.shape[1:])
    share = jr.uniform(radius_key, (len(images), 1, 1, 1), images.dtype)
    radius = share ** (1 / dimension)
    return project(images + epsilon * radius * direction, images, epsilon, norm)
