"""Allowances for rounding in the certificate of a prediction."""

from functools import reduce
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jnode.certify.precision import is_block
from jnode.fields.base import safe_norm
from jnode.linear import AbstractLinear, Dense
from jnode.solvers import tableau

if TYPE_CHECKING:
    from jnode.models import ModelBounds, ODEClassifier
    from jnode.models.classifier import Head

# Each float32 operation moves states by some 1e-7 of their size, and the operations
# after it amplify that like any other difference. So a logit difference counts only
# beyond this fraction of max(1, L) |features| |w_y - w_c|. The allowance is stated, not
# proven: the tests and the soundness benchmark compare with float64, and the measured
# error is far smaller.
ROUNDING = 1e-5
ALLOWANCE = {"rounding": "allowed for, stated and not proven", "relative": ROUNDING}
"""The note about rounding in every certificate that is written."""
# The head's sums err relative to the logits' terms, not to their difference: two rows
# may be nearly equal. XLA's CPU code errs by u / 16 for each term, if all have the same
# rounding error; less would be allowed for by sums of sums, but these take ten times as
# long there.
HEAD_ROUNDING, HEAD_ROUNDING_OF_A_TERM = 2e-6, 2.0**-24 / 8
# Up to so many evaluations of the field, and entries in a row of a matrix. Errors of
# many evaluations, and of the terms of long sums, may all have the same sign.
EVALUATIONS, LONGEST = 100, 8192


def head_allowance(
    head: "Head", size: Float[Array, ""], y: Array
) -> Float[Array, " classes"]:
    """The rounding error of each margin of class `y` in the head, for features of a
    size. Like `ROUNDING` it is stated."""
    terms = jax.vmap(safe_norm)(head.rows()) * size + jnp.abs(head.bias)
    share = max(HEAD_ROUNDING, head.weight.shape[1] * HEAD_ROUNDING_OF_A_TERM)
    return share * (terms[y] + terms)


def rounding(model: "ODEClassifier") -> float:
    """`ROUNDING` for a model, more if it has many evaluations or long sums."""
    evaluations = sum(
        block.solver.plan(block.field, block.t0, block.t1).steps
        * len(tableau(block.solver.name)[1])
        for block in model.blocks
    )
    return ROUNDING * max(1.0, evaluations / EVALUATIONS) * long_rows(model.layers)


def long_rows(tree: PyTree) -> float:
    """By how much the longest row of a matrix exceeds `LONGEST`, at least 1."""
    is_dense = lambda x: isinstance(x, Dense)  # noqa: E731
    leaves = jax.tree.leaves(tree, is_leaf=is_dense)
    arrays = [x.matrix if is_dense(x) else x for x in leaves]
    rows = [x.shape[-1] for x in arrays if eqx.is_inexact_array(x) and x.ndim == 2]
    return max(1.0, max(rows, default=0) / LONGEST)


def stated_rounding(
    model: "ODEClassifier",
    image: Float[Array, "height width channels"],
    states: tuple[Float[Array, "..."], ...],
    bounds: "ModelBounds",
) -> Float[Array, ""]:
    """The allowance for the rounding of the features, in L2.

    **Arguments:** a resolved model, an image, the model's states after each layer, and
    its bounds.
    """
    # Rounding is relative to the size of the intermediate states too, which is measured
    # at the end of each layer: a Lipschitz bound on the image of zero would be much
    # larger.
    largest, inner = safe_norm(image), jnp.zeros(())
    for layer, state, gain in zip(model.layers, states, bounds.bias_gains, strict=True):
        inner = inner + layer_inner_size(layer, model, state.size) * gain
        largest = jnp.maximum(largest, safe_norm(state))
    return rounding(model) * (1 + largest + inner) * bounds.growth


def layer_inner_size(layer: Any, model: "ODEClassifier", size: int) -> Float[Array, ""]:
    """`inner_size` of a layer; of an ODE block that of its largest segment, as steps
    make their errors one after another."""
    if not is_block(layer, model):
        return inner_size(layer, size)
    schedule = layer.solver.plan(layer.field, layer.t0, layer.t1)
    segments = (schedule.at(layer.field, k) for k in range(schedule.count))
    return reduce(jnp.maximum, (inner_size(x, size) for x in segments))


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
