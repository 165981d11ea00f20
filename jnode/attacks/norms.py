"""Norms of perturbations, projections onto balls, and steepest directions."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Images = Float[Array, "batch height width channels"]
NORMS = ("linf", "l2")

# The L2 ball is made smaller by this fraction, so that rounding never leaves it.
_MARGIN = 1e-6


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
    perturbation: Images, limit: Float[Array, "batch 1 1 1"], norm: str
) -> Images:
    """The nearest perturbation whose norm is at most `limit`."""
    if norm == "linf":
        return jnp.clip(perturbation, -limit, limit)
    length = wide(size(perturbation, norm))
    limit = limit * (1 - _MARGIN)
    return perturbation * jnp.minimum(1.0, limit / jnp.maximum(length, 1e-12))


def steepest(gradient: Images, norm: str) -> Images:
    """The direction of norm 1 in which the loss grows fastest."""
    if norm == "linf":
        return jnp.sign(gradient)
    # Scaled first: squares of gradients below 1e-19 would vanish in float32.
    top = wide(size(gradient, "linf"))
    scaled = gradient / jnp.maximum(top, 1e-30)
    return scaled / wide(jnp.maximum(size(scaled, norm), 1e-12))
