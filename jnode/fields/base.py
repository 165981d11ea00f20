"""What every vector field of the package can do."""

import abc
from collections.abc import Sequence
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.bounds import Bounds, up
from jnode.fields.inner_form import InnerForm
from jnode.linear import plain
from jnode.linear.base import check_positive

Shape = tuple[int, ...]


class AbstractVectorField(eqx.Module):
    """The right-hand side of $dy/dt = f(t, y)$, with certified bounds of its Jacobian.

    Called as `field(t, y, args)`, so it serves as it is in `diffrax.ODETerm`. A field
    implements `__call__` and `bounds`.
    """

    @abc.abstractmethod
    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        """$f(t, y)$; `args` is there for Diffrax and not used."""

    @abc.abstractmethod
    def bounds(self) -> Bounds:
        """What is certified of the field, from the arrays that it holds now.

        To get the bounds and the weights of one pass, see `jnode.resolve`.
        """

    @final
    def lipschitz(self) -> Float[Array, ""]:
        r"""A certified upper bound on the L2 Lipschitz constant of $f(t, \cdot)$.

        It holds at every $t$; `inf` where none is known.
        """
        return self.bounds().lipschitz

    @final
    def log_norm(self) -> Float[Array, ""]:
        r"""A certified upper bound on the L2 logarithmic norm of $f(t, \cdot)$.

        $\mu_2(J) = \lambda_{\max}((J + J^\top)/2)$ for every Jacobian $J$; it may be
        zero or negative (Söderlind, BIT 2006). `bounds()` has a lower bound too.
        """
        return self.bounds().log_norm[1]

    @final
    def cocoercivity(self) -> Float[Array, ""]:
        r"""A certified $c \ge 0$ with which the field is cocoercive; see `Bounds`."""
        return self.bounds().cocoercivity

    @property
    def time_invariant(self) -> bool:
        """Whether $f(t, y)$ is known to be the same at every $t$."""
        return False

    @property
    def takes_batches(self) -> bool:
        """Whether a baked field, called with a batch of states, maps each by itself.

        The batch's axis then comes before the channels: `[height, width, batch,
        channels]` or `[batch, size]`, which moves no axis on the way and is quicker
        than `jax.vmap`.
        """
        return False

    def inner_form(self) -> InnerForm | None:
        """Of a baked field: how its inner units move, where that costs less to solve.

        `None` for a field that is not of that form.
        """
        return None

    def vjp_change(
        self,
        t: Any,
        y: Float[Array, "*state"],
        cotangent: Float[Array, "*state"],
        distance: Float[Array, ""],
        rounding: Float[Array, ""],
    ) -> Float[Array, ""]:
        r"""A certified bound on $\|(J(z) - J(y))^\top v\|$ near $y$, $J$ the Jacobian.

        It holds for all $z$ with $\|z - y\| \le$ `distance`, where inner units are
        known up to `rounding`. By default twice what the Lipschitz constant allows.
        """
        del t, y, distance, rounding
        return up(2 * self.lipschitz() * safe_norm(cotangent))

    @final
    def bake(self) -> "AbstractVectorField":
        """An equal field with every reparametrisation computed."""
        return plain(self)

    def __add__(self, other: "AbstractVectorField") -> "AbstractVectorField":
        """$f + g$, with the bounds that follow from theirs."""
        if not isinstance(other, AbstractVectorField):
            return NotImplemented
        return Sum((self, other))

    def __mul__(self, factor: float) -> "AbstractVectorField":
        """$a f$ for a finite number $a$, with the bounds that follow."""
        if not isinstance(factor, (int, float)):
            return NotImplemented
        return Scaled(self, factor)

    __rmul__ = __mul__

    def __sub__(self, other: "AbstractVectorField") -> "AbstractVectorField":
        """$f - g$, with the bounds that follow from theirs."""
        if not isinstance(other, AbstractVectorField):
            return NotImplemented
        return self + -other

    def __neg__(self) -> "AbstractVectorField":
        """$-f$, the field of reversed time, with the bounds that follow."""
        return -1.0 * self


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


class AbstractUncertifiedField(AbstractVectorField):
    """A field of which nothing is certified."""

    def bounds(self) -> Bounds:
        return Bounds(jnp.inf)


def check_shape(shape: Shape) -> Shape:
    """A state's shape: `(size,)`, or `(height, width, channels)`."""
    shape = tuple(shape)
    if len(shape) not in (1, 3):
        raise ValueError(
            f"shape must be (size,) or (height, width, channels), not {shape}."
        )
    names = ("size",) if len(shape) == 1 else ("height", "width", "channels")
    check_positive(**dict(zip(names, shape, strict=True)))
    return shape


def check_rate(name: str, value: float) -> float:
    """Raises `ValueError` for a rate that is not a finite number of at least 0."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least 0, not {value}.")
    return float(value)


class Scale(eqx.Module):
    """A positive factor: fixed, or learnable up to a cap."""

    value: float = eqx.field(static=True)
    raw: Float[Array, ""] | None

    def __init__(self, value: float, *, learnable: bool):
        """**Arguments:** the value, or the cap below which it is learned."""
        if not 0 < value < float("inf"):
            raise ValueError(
                f"lipschitz must be a positive finite number, not {value!r}."
            )
        self.value = float(value)
        self.raw = jnp.asarray(2.2) if learnable else None

    def __call__(self, dtype) -> Float[Array, ""]:
        """The factor, as an array of this type."""
        if self.raw is None:
            return jnp.asarray(self.value, dtype)
        return (self.value / (1 + jnp.exp(-self.raw))).astype(dtype)


def safe_norm(x: Float[Array, "..."]) -> Float[Array, ""]:
    """The L2 norm, with a derivative of 0 rather than NaN at zero."""
    tiny = jnp.asarray(jnp.finfo(x.dtype).tiny, x.dtype)
    return jnp.sqrt(jnp.sum(x**2) + tiny)


def add_bias(
    x: Float[Array, "*grid channels"], bias: Float[Array, " channels"]
) -> Float[Array, "*grid channels"]:
    """`x + bias` with ranks and dtypes spelled out, as strict promotion wants them."""
    return x + bias.reshape((1,) * (x.ndim - 1) + bias.shape).astype(x.dtype)
