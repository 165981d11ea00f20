"""Allowances for rounding in the certificate of a prediction."""

from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jnode.fields.base import safe_norm
from jnode.linear import AbstractLinear

if TYPE_CHECKING:
    from jnode.models.classifier import Head

# The head's sums err relative to the logits' terms, not to their difference: two rows
# may be nearly equal.
HEAD_ROUNDING = 2e-6


def head_allowance(
    head: "Head", size: Float[Array, ""], y: Array
) -> Float[Array, " classes"]:
    """The rounding error of each margin of class `y` in the head, for features of a
    size."""
    terms = jax.vmap(safe_norm)(head.rows()) * size + jnp.abs(head.bias)
    return HEAD_ROUNDING * (terms[y] + terms)


def inner_size(tree: PyTree, size: int) -> Float[Array, ""]:
    """The size of the biases of a field or layer.

    In L2, over a state of `size` entries. Rounding errors are relative to the biases
    too, even if they cancel in a later sum.
    """
    is_map = lambda x: isinstance(x, AbstractLinear)  # noqa: E731
    leaves = [x for x in jax.tree.leaves(tree, is_leaf=is_map) if not is_map(x)]
    total = jnp.zeros(())
    for leaf in leaves:
        if eqx.is_inexact_array(leaf):
            repeats = max(1.0, size / leaf.shape[-1]) if leaf.ndim else float(size)
            total = total + (safe_norm(leaf) * repeats**0.5).astype(total.dtype)
    return total
