"""Fields built from other fields, with the bounds that follow.

Sums and multiples are in `base.py`, beside the operators that make them.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode._checks import check_choice, check_rate
from jnode.bounds import Bounds
from jnode.constraints import plain
from jnode.fields.base import (
    AbstractUncertifiedField,
    AbstractVectorField,
    TwoLayer,
    as_two_layer,
    takes_batches,
    time_invariant,
)
from jnode.linear import AbstractLinear, AbstractPlain, LowPrecision

DTYPES = ("bfloat16", "float16")


class Decay(AbstractVectorField):
    r"""$f(t, y) = -\lambda y$. Added to a field, it lowers its logarithmic norm."""

    rate: float = eqx.field(static=True)

    takes_batches = True
    time_invariant = True

    def __init__(self, rate: float):
        r"""**Arguments:** $\lambda \ge 0$. **Raises:** `ValueError` for another."""
        self.rate = check_rate("rate", rate)

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        return -self.rate * y

    def vjp_change(self, t, y, cotangent, distance, rounding) -> Float[Array, ""]:
        return jnp.zeros((), y.dtype)

    def bounds(self) -> Bounds:
        if self.rate == 0:
            return Bounds(0.0)
        return Bounds(self.rate, (-self.rate, -self.rate), 1 / self.rate * (1 - 1e-6))


class Composed(AbstractVectorField):
    """$f(t, g(t, y))$, whose Lipschitz constant is the product of theirs."""

    outer: AbstractVectorField
    inner: AbstractVectorField

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        return self.outer(t, self.inner(t, y, args), args)

    @property
    def time_invariant(self) -> bool:
        return time_invariant(self.outer) and time_invariant(self.inner)

    @property
    def takes_batches(self) -> bool:
        return takes_batches(self.outer) and takes_batches(self.inner)

    def bounds(self) -> Bounds:
        return self.outer.bounds() @ self.inner.bounds()


class Congruent(AbstractVectorField):
    r"""$W^\top f(t, Wy)$ for a linear map $W$, as in a congruence of matrices."""

    field: AbstractVectorField
    map: AbstractLinear

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        map_ = plain(self.map)
        return map_.T(self.field(t, map_(y), args))

    @property
    def time_invariant(self) -> bool:
        return time_invariant(self.field)

    def bounds(self) -> Bounds:
        return self.field.bounds().congruence(self.map.norm())


class LowPrecisionField(AbstractUncertifiedField):
    r"""Another field, its matrix products computed in bfloat16 or float16.

    Constraints (such as a Cayley transform), biases, activations, time, and the
    solver's sums keep their dtype; weights are rounded after the constraint, and
    receive gradients. This is faster on hardware that multiplies short numbers faster,
    such as TPUs and GPUs, but not on CPU.

    Rounding makes it a step function, so nothing is certified: `lipschitz` and
    `log_norm` are `inf`. Certify `field` instead; `benchmarks/precision.py` measures
    how far the two differ, which is only an empirical lower bound.
    """

    field: AbstractVectorField
    dtype: str = eqx.field(static=True)

    def __init__(self, field: AbstractVectorField, dtype: str = "bfloat16"):
        """**Arguments:** the field and the type, "bfloat16" or "float16".

        **Raises:** `ValueError` for another type.
        """
        check_choice("dtype", dtype, DTYPES)
        self.field = field
        self.dtype = dtype

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        return self._rounded()(t, y, args)

    def _rounded(self) -> AbstractVectorField:
        is_map = lambda x: isinstance(x, AbstractPlain)  # noqa: E731
        return jax.tree.map(
            lambda x: LowPrecision(x, self.dtype) if is_map(x) else x,
            plain(self.field),
            is_leaf=is_map,
        )

    @property
    def time_invariant(self) -> bool:
        return time_invariant(self.field)

    @property
    def takes_batches(self) -> bool:
        return takes_batches(self.field)

    def as_two_layer(self) -> TwoLayer | None:
        return as_two_layer(self._rounded())
