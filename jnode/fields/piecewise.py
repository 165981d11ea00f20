"""Weights that change with time, piece by piece."""

import itertools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jnode.bounds import Bounds
from jnode.fields.base import AbstractVectorField
from jnode.linear.resolve import AbstractStack


class PiecewiseField(AbstractVectorField, AbstractStack):
    r"""One field on each of $K$ equally long intervals of $[t_0, t_1]$.

    Depth for a neural ODE: each piece has weights of its own. `jnode.solve` integrates
    piece after piece, so no step crosses a jump, and the certificate is the product of
    the pieces' certificates.
    """

    pieces: AbstractVectorField
    count: int = eqx.field(static=True)
    t0: float = eqx.field(static=True)
    t1: float = eqx.field(static=True)

    def __init__(
        self,
        pieces: Sequence[AbstractVectorField],
        *,
        t0: float = 0.0,
        t1: float = 1.0,
    ):
        """**Arguments:** the fields, alike but for their weights, and the interval.

        **Raises:** `ValueError` for no field, for fields of different structure, or for
        an empty interval.
        """
        if not pieces:
            raise ValueError("pieces must hold at least one field.")
        if not t0 < t1:
            raise ValueError(f"t1 must be greater than t0 = {t0}, not {t1}.")
        if len({jax.tree.structure(piece) for piece in pieces}) > 1:
            raise ValueError(
                "pieces must be alike but for their weights: build all of them with "
                "the same class and options."
            )
        # Stacked, so that a solve compiles one piece and scans over all.
        self.pieces = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pieces)
        self.count = len(pieces)
        self.t0, self.t1 = float(t0), float(t1)

    def index(self, t: Any) -> Int[Array, ""]:
        """Which piece rules at time $t$; the first and last rule beyond the ends."""
        share = (jnp.asarray(t) - self.t0) / (self.t1 - self.t0)
        return jnp.clip(jnp.floor(share * self.count), 0, self.count - 1).astype(int)

    def times(self) -> list[float]:
        """Where the pieces begin, and where the last one ends."""
        width = (self.t1 - self.t0) / self.count
        return [self.t0 + k * width for k in range(self.count)] + [self.t1]

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        return self.piece(self.index(t))(t, y, args)

    def piece(self, index: Any) -> AbstractVectorField:
        """One of the fields; `index` may be traced."""
        return jax.tree.map(lambda leaf: leaf[index], self.pieces)

    def each(self) -> Bounds:
        """The bounds of every piece, stacked."""
        bounds = eqx.filter_vmap(lambda piece: piece.bounds())(self.pieces)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (self.count,)), bounds)

    @property
    def time_invariant(self) -> bool:
        return self.count == 1 and self.pieces.time_invariant

    @property
    def takes_batches(self) -> bool:
        return self.pieces.takes_batches

    def bounds(self) -> Bounds:
        return self.each().over_time()


def jumps(tree: Any) -> tuple[float, ...]:
    """The times at which a PyTree jumps: where a piece of any field in it ends."""
    found = set()
    for field in _piecewise(tree):
        found |= {*field.times()[1:-1], *jumps(field.pieces)}
    return tuple(sorted(found))


def segment(tree: Any, index: Any, edges: tuple[float, ...]) -> Any:
    """The PyTree as it is between `edges[index]` and `edges[index + 1]`.

    **Arguments:** the tree; the segment, perhaps traced; times between which nothing in
    the tree jumps.
    """
    middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)]

    def one(x):
        if not isinstance(x, PiecewiseField):
            return x
        shares = (np.asarray(middles) - x.t0) / (x.t1 - x.t0)
        table = np.clip(np.floor(shares * x.count), 0, x.count - 1).astype(int)
        return segment(x.piece(jnp.asarray(table)[index]), index, edges)

    return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, PiecewiseField))


def _piecewise(tree):
    is_piecewise = lambda x: isinstance(x, PiecewiseField)  # noqa: E731
    return filter(is_piecewise, jax.tree.leaves(tree, is_leaf=is_piecewise))
