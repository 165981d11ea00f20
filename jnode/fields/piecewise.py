"""Weights that change with time, piece by piece."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jnode.fields.base import AbstractVectorField


class PiecewiseField(AbstractVectorField):
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

    def each(self, bound: str) -> Float[Array, " pieces"]:
        """A bound (by its method's name) of every piece."""
        values = eqx.filter_vmap(lambda piece: getattr(piece, bound)())(self.pieces)
        return jnp.broadcast_to(values, (self.count,))

    @property
    def time_invariant(self) -> bool:
        return self.count == 1

    @property
    def takes_batches(self) -> bool:
        return self.pieces.takes_batches

    def lipschitz(self) -> Float[Array, ""]:
        return jnp.max(self.each("lipschitz"))

    def log_norm(self) -> Float[Array, ""]:
        return jnp.max(self.each("log_norm"))

    def cocoercivity(self) -> Float[Array, ""]:
        return jnp.min(self.each("cocoercivity"))

    def bake(self) -> "PiecewiseField":
        baked = eqx.filter_vmap(lambda piece: piece.bake())(self.pieces)
        return eqx.tree_at(lambda f: f.pieces, self, baked)
