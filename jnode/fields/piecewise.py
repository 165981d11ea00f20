"""Weights that change with time, segment by segment."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jnode.bounds import Bounds
from jnode.fields.base import AbstractVectorField, takes_batches, time_invariant


class PiecewiseField(AbstractVectorField):
    r"""One field on each of $K$ equally long intervals of $[t_0, t_1]$.

    This gives a neural ODE depth, as each segment has weights of its own.
    `jnode.solve` integrates segment after segment, so no step crosses a jump, and the
    certificate is the product of the segments' certificates. The first segment holds
    before $t_0$, the last one after $t_1$.
    """

    segments: AbstractVectorField
    count: int = eqx.field(static=True)
    t0: float = eqx.field(static=True)
    t1: float = eqx.field(static=True)

    def __init__(
        self,
        segments: Sequence[AbstractVectorField],
        *,
        t0: float = 0.0,
        t1: float = 1.0,
    ):
        """**Arguments:** the fields, alike but for their weights, and the interval.

        **Raises:** `ValueError` for no field, for fields of different structure, or for
        an empty interval.
        """
        if not segments:
            raise ValueError("segments must hold at least one field.")
        if not t0 < t1:
            raise ValueError(f"t1 must be greater than t0 = {t0}, not {t1}.")
        if len({jax.tree.structure(segment) for segment in segments}) > 1:
            raise ValueError(
                "segments must be alike but for their weights: build all of them with "
                "the same class and options."
            )
        # Stacked, so that a solve compiles one segment and scans over all.
        self.segments = jax.tree.map(_stacked, *segments)
        self.count = len(segments)
        self.t0, self.t1 = float(t0), float(t1)

    def index(self, t: Any) -> Int[Array, ""]:
        """The number of the segment at time $t$; before $t_0$ the first, after $t_1$
        the last."""
        t = jnp.asarray(t)
        moves = jnp.issubdtype(t.dtype, jnp.floating)
        dtype = t.dtype if moves else jnp.asarray(0.0).dtype
        # Compares with the rounded jumps themselves: a fraction of the interval could
        # round up to the next segment just before a jump, where Diffrax's steps end.
        jumps = jnp.asarray(self.times()[1:-1], dtype)
        return jnp.sum(t.astype(dtype) >= jumps, dtype=int)

    def times(self) -> list[float]:
        """The times at which the segments begin, and the end of the last one."""
        width = (self.t1 - self.t0) / self.count
        return [self.t0 + k * width for k in range(self.count)] + [self.t1]

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        return self.segment(self.index(t))(t, y, args)

    def segment(self, index: Any) -> AbstractVectorField:
        """One of the fields; `index` may be traced."""
        return jax.tree.map(
            lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, self.segments
        )

    def each(self) -> Bounds:
        """The bounds of every segment, stacked."""
        size = {"axis_size": self.count}
        bounds = eqx.filter_vmap(lambda segment: segment.bounds(), **size)(
            self.segments
        )
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (self.count,)), bounds)

    @property
    def time_invariant(self) -> bool:
        return self.count == 1 and time_invariant(self.segments)

    @property
    def takes_batches(self) -> bool:
        return takes_batches(self.segments)

    def bounds(self) -> Bounds:
        return self.each().over_time()


def _stacked(*leaves: Any) -> Any:
    """Arrays stacked along a new first axis, or the common value of other leaves."""
    if eqx.is_array(leaves[0]):
        return jnp.stack(leaves)
    if any(leaf is not leaves[0] and leaf != leaves[0] for leaf in leaves):
        raise ValueError(
            "segments must be alike but for their arrays: give all of them the same "
            f"functions and numbers, not {leaves}."
        )
    return leaves[0]


def _is_piecewise(x: Any) -> bool:
    return isinstance(x, PiecewiseField)


def _found(tree: PyTree) -> list[PiecewiseField]:
    """Every `PiecewiseField` in a tree, including those inside of other segments."""
    fields = [x for x in jax.tree.leaves(tree, _is_piecewise) if _is_piecewise(x)]
    return [y for x in fields for y in (x, *_found(x.segments))]


def jumps(tree: PyTree) -> tuple[float, ...]:
    """The times at which the weights of anything in `tree` jump, in increasing order.

    They are the times between the segments of every `PiecewiseField` in it: in a sum, a
    multiple, a composition, or a module of your own. The closure of a plain Python
    function is not part of the tree, so jumps in there are not found.
    """
    fields = _found(tree)
    times = sorted({t for field in fields for t in field.times()[1:-1]})
    near = 1e-9 * max((field.t1 - field.t0 for field in fields), default=0.0)
    # Thirds and sixths of an interval agree up to rounding.
    return tuple(t for i, t in enumerate(times) if i == 0 or t - times[i - 1] > near)


def marks(tree: PyTree) -> tuple[float, ...]:
    """All jumps of a tree, with one time before the first and one after the last."""
    times = jumps(tree)
    return (times[0] - 1, *times, times[-1] + 1) if times else (0.0, 1.0)


def segment(tree: PyTree, index: Any, edges: Sequence[float]) -> PyTree:
    """`tree` as it is between two of its jumps, with no `PiecewiseField` left.

    **Arguments:** any tree; which interval between consecutive `edges`, from 0, an
    integer that may be traced; and the edges, Python numbers: $t_0$, the jumps on the
    way, and $t_1$, increasing or decreasing.

    **Returns:** the tree with each `PiecewiseField` replaced by its segment on that
    interval.
    """

    def replace(x):
        if not _is_piecewise(x):
            return x
        table = _ruling(x, edges)
        known = isinstance(index, (int, np.integer))
        chosen = int(table[index]) if known else jnp.asarray(table)[index]
        return segment(x.segment(chosen), index, edges)

    return jax.tree.map(replace, tree, is_leaf=_is_piecewise)


def segments(
    tree: PyTree, order: Sequence[int], edges: Sequence[float]
) -> tuple[PyTree, PyTree]:
    """Several segments of a tree at once, for `jax.lax.scan` to iterate over.

    **Returns:** the arrays that differ from segment to segment, with an axis for them
    in front, in the given order; and the rest of the tree. `equinox.combine` of one
    slice and the rest is `segment(tree, order[k], edges)`.
    """

    def walk(tree, tables, leaf):
        def visit(x):
            if _is_piecewise(x):
                table = _ruling(x, edges)[np.asarray(order)]
                return walk(x.segments, (*tables, table), leaf)
            return leaf(x, tables)

        return jax.tree.map(visit, tree, is_leaf=_is_piecewise)

    def moves(x, tables):
        return bool(tables) and eqx.is_array(x)

    def gather(x, tables):
        if not moves(x, tables):
            return x
        whole = len(tables) == 1 and np.array_equal(tables[0], np.arange(len(x)))
        return x if whole else x[tables]  # each segment once needs no copy

    return eqx.partition(walk(tree, (), gather), walk(tree, (), moves))


def _ruling(field: PiecewiseField, edges: Sequence[float]) -> Int[np.ndarray, " n"]:
    """The number of the segment between each two consecutive edges."""
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    return np.searchsorted(field.times()[1:-1], middles, side="right")
