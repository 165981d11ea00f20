"""Sums, multiples and compositions of fields, and the bounds that follow."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.fields.base import (
    AbstractVectorField,
    check_rate,
    contraction_cocoercivity,
    round_up,
)
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
    def takes_batches(self) -> bool:
        return True

    def lipschitz(self) -> Float[Array, ""]:
        return round_up(jnp.asarray(self.rate))

    def log_norm(self) -> Float[Array, ""]:
        return jnp.asarray(-self.rate)

    def cocoercivity(self) -> Float[Array, ""]:
        return 1 / round_up(self.lipschitz())

    def bake(self) -> "Decay":
        return self


class Sum(AbstractVectorField):
    r"""$\sum_i f_i(t, y)$; `f + g` makes one.

    Lipschitz constants and logarithmic norms add up. Of cocoercive fields the sum is
    cocoercive with the harmonic sum of the constants, as $|u|^2/a + |v|^2/b
    \ge |u + v|^2/(a + b)$.
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

    def lipschitz(self) -> Float[Array, ""]:
        return round_up(_total(field.lipschitz() for field in self.fields))

    def log_norm(self) -> Float[Array, ""]:
        bounds = [field.log_norm() for field in self.fields]
        size = _total(jnp.abs(bound) for bound in bounds)
        # Terms of both signs: the allowance is relative to their sizes.
        return _total(bounds) + 1e-6 * jnp.where(jnp.isfinite(size), size, 0)

    def cocoercivity(self) -> Float[Array, ""]:
        constants = [field.cocoercivity() for field in self.fields]
        inverse = round_up(_total(1 / c for c in constants))
        contraction = contraction_cocoercivity(self.log_norm(), self.lipschitz())
        return jnp.maximum(1 / inverse, contraction.astype(inverse.dtype))

    def bake(self) -> "Sum":
        return Sum([field.bake() for field in self.fields])


class Scaled(AbstractVectorField):
    """$a f(t, y)$ for a number $a > 0$; `a * f` makes one."""

    field: AbstractVectorField
    factor: float = eqx.field(static=True)

    def __init__(self, field: AbstractVectorField, factor: float):
        """**Arguments:** the field and the factor.

        **Raises:** `ValueError` for a factor that is not positive and finite: the other
        sign turns time around, which makes a contraction an expansion.
        """
        if not 0 < factor < float("inf"):
            raise ValueError(f"factor must be positive and finite, not {factor!r}.")
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

    def lipschitz(self) -> Float[Array, ""]:
        return round_up(self.factor * self.field.lipschitz())

    def log_norm(self) -> Float[Array, ""]:
        bound = self.factor * self.field.log_norm()
        return bound + 1e-6 * jnp.where(jnp.isfinite(bound), jnp.abs(bound), 0)

    def cocoercivity(self) -> Float[Array, ""]:
        return self.field.cocoercivity() / self.factor * (1 - 1e-6)

    def bake(self) -> "Scaled":
        return Scaled(self.field.bake(), self.factor)


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

    def lipschitz(self) -> Float[Array, ""]:
        return round_up(self.outer.lipschitz() * self.inner.lipschitz())

    def log_norm(self) -> Float[Array, ""]:
        return self.lipschitz()

    def cocoercivity(self) -> Float[Array, ""]:
        return jnp.asarray(0.0)

    def bake(self) -> "Composed":
        return Composed(self.outer.bake(), self.inner.bake())


class Congruent(AbstractVectorField):
    r"""$W^\top f(t, Wy)$ for a linear map $W$: a field seen through a map.

    Its Jacobian is $W^\top J W$, so a logarithmic norm of at most 0 stays one, and
    $c$-cocoercivity becomes $c/\|W\|^2$-cocoercivity.
    """

    field: AbstractVectorField
    map: AbstractLinear

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        return self.map.transpose(self.field(t, self.map(y), args))

    @property
    def time_invariant(self) -> bool:
        return self.field.time_invariant

    def lipschitz(self) -> Float[Array, ""]:
        return round_up(self.map.norm() ** 2 * self.field.lipschitz())

    def log_norm(self) -> Float[Array, ""]:
        return round_up(self.map.norm() ** 2 * jnp.maximum(self.field.log_norm(), 0))

    def cocoercivity(self) -> Float[Array, ""]:
        return self.field.cocoercivity() / round_up(self.map.norm() ** 2) * (1 - 1e-6)

    def bake(self) -> "Congruent":
        return Congruent(self.field.bake(), self.map.bake())


def _total(terms):
    first, *rest = terms
    return sum(rest, start=first)
