"""Sums, multiples and compositions of fields, and the bounds that follow."""

from collections.abc import Sequence
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


class Sum(AbstractVectorField):
    r"""$\sum_i f_i(t, y)$; `f + g` makes one.

    Its bounds are the sum of theirs (see `Bounds`).
    """

    fields: tuple[AbstractVectorField, ...]

    def __init__(self, fields: Sequence[AbstractVectorField]):
        """**Arguments:** at least one field, all on states of one shape."""
        if not fields:
            raise ValueError("fields must hold at least one field.")
        self.fields = tuple(fields)

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        terms = [field(t, y, args) for field in self.fields]
        return sum(terms[1:], start=terms[0])

    @property
    def time_invariant(self) -> bool:
        return all(field.time_invariant for field in self.fields)

    @property
    def takes_batches(self) -> bool:
        return all(field.takes_batches for field in self.fields)

    def bounds(self) -> Bounds:
        first, *rest = (field.bounds() for field in self.fields)
        return sum(rest, start=first)


class Scaled(AbstractVectorField):
    """$a f(t, y)$ for a finite number $a$; `a * f` makes one.

    With $a < 0$ it is the field of reversed time, which expands where $f$ contracts.
    """

    field: AbstractVectorField
    factor: float = eqx.field(static=True)

    def __init__(self, field: AbstractVectorField, factor: float):
        """**Arguments:** the field and the factor.

        **Raises:** `ValueError` for a factor that is not finite.
        """
        if not -float("inf") < factor < float("inf"):
            raise ValueError(f"factor must be finite, not {factor!r}.")
        self.field = field
        self.factor = float(factor)

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        return self.factor * self.field(t, y, args)

    @property
    def time_invariant(self) -> bool:
        return self.field.time_invariant

    @property
    def takes_batches(self) -> bool:
        return self.field.takes_batches

    def bounds(self) -> Bounds:
        return self.factor * self.field.bounds()


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
