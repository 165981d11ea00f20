"""Decay and compositions of fields, and the bounds that follow.

Sums and multiples are in `base.py`, beside the operators that make them.
"""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from jnode.bounds import Bounds
from jnode.fields.base import AbstractVectorField, check_rate
from jnode.linear import AbstractLinear


class Decay(AbstractVectorField):
    r"""$f(t, y) = -\lambda y$. Added to a field, it lowers its logarithmic norm."""

    rate: float = eqx.field(static=True)

    def __init__(self, rate: float):
        r"""**Arguments:** $\lambda \ge 0$. **Raises:** `ValueError` for another."""
        self.rate = check_rate("rate", rate)

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        return -self.rate * y

    @property
    def time_invariant(self) -> bool:
        return True

    @property
    def takes_batches(self) -> bool:
        return True

    def bounds(self) -> Bounds:
        if self.rate == 0:
            return Bounds(0.0)
        return Bounds(self.rate, (-self.rate, -self.rate), 1 / self.rate * (1 - 1e-6))


class Composed(AbstractVectorField):
    """$f(t, g(t, y))$: the constants multiply, and nothing else is known."""

    outer: AbstractVectorField
    inner: AbstractVectorField

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        return self.outer(t, self.inner(t, y, args), args)

    @property
    def time_invariant(self) -> bool:
        return self.outer.time_invariant and self.inner.time_invariant

    def bounds(self) -> Bounds:
        return self.outer.bounds() @ self.inner.bounds()


class Congruent(AbstractVectorField):
    r"""$W^\top f(t, Wy)$ for a linear map $W$: a field seen through a map."""

    field: AbstractVectorField
    map: AbstractLinear

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        map_ = self.map.bake()
        return map_.transpose(self.field(t, map_(y), args))

    @property
    def time_invariant(self) -> bool:
        return self.field.time_invariant

    def bounds(self) -> Bounds:
        return self.field.bounds().congruence(self.map.norm())
