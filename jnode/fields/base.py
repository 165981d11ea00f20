"""The interface of vector fields, their sums and multiples, and the two-layer form."""

import abc
from collections.abc import Sequence
from functools import reduce
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode._checks import Fixed
from jnode.activations import AbstractActivation
from jnode.bounds import Bounds, up
from jnode.constraints import plain
from jnode.linear import AbstractLinear, Product

Shape = tuple[int, ...]
TimeCoefficients = tuple[Float[Array, " hidden"], Float[Array, " channels"]]


class AbstractVectorField(Fixed):
    r"""The right-hand side of $dy/dt = f(t, y)$, with certified bounds of its Jacobian.

    Called as `field(t, y, args)`, so it serves as it is in `diffrax.ODETerm`. A field
    implements `__call__` and `bounds`. It may also define the following, which faster
    or sharper computations use:

    - `time_invariant`: whether $f(t, y)$ is known to be the same at every $t$.
    - `takes_batches`: whether a plain field, called with a batch of states, maps each
        by itself. The batch's axis then comes before the channels: `[height, width,
        batch, channels]` or `[batch, size]`, which moves no axis on the way and is
        quicker than `jax.vmap`.
    - `as_two_layer()`: a `TwoLayer` that is equal to the plain field, or `None`.
    - `vjp_change(t, y, cotangent, distance, rounding)`: see the function of this name.

    All of these describe `__call__`, so a subclass of a field cannot override it, nor
    the forms by which it is computed: that raises a `TypeError`. A field of your own
    holds another one, or combines several.
    """

    _jnode_fixed = ("as_two_layer",)

    @abc.abstractmethod
    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        """$f(t, y)$; `args` is there for Diffrax and not used."""

    @abc.abstractmethod
    def bounds(self) -> Bounds:
        """The certified bounds of the field, from the arrays that it holds now.

        `jnode.resolve` gives these and the plain weights in one pass.
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

    @final
    def bake(self) -> "AbstractVectorField":
        """An equal field whose constrained maps were replaced by plain ones."""
        return plain(self)

    @final
    def __add__(self, other: "AbstractVectorField") -> "AbstractVectorField":
        """$f + g$, with the bounds that follow from theirs."""
        if not isinstance(other, AbstractVectorField):
            return NotImplemented
        return Sum((self, other))

    @final
    def __mul__(self, factor: float) -> "AbstractVectorField":
        """$a f$ for a finite number $a$, with the bounds that follow."""
        if not isinstance(factor, (int, float)):
            return NotImplemented
        return Scaled(self, factor)

    __rmul__ = __mul__

    @final
    def __sub__(self, other: "AbstractVectorField") -> "AbstractVectorField":
        """$f - g$, with the bounds that follow from theirs."""
        if not isinstance(other, AbstractVectorField):
            return NotImplemented
        return self + -other

    @final
    def __neg__(self) -> "AbstractVectorField":
        """$-f$, the time-reversed field, with the bounds that follow."""
        return -1.0 * self


def time_invariant(field: Any) -> bool:
    """Whether $f(t, y)$ is known to be the same at every $t$."""
    return getattr(field, "time_invariant", False)


def takes_batches(field: Any) -> bool:
    """Whether the plain field takes batches of states (see `AbstractVectorField`)."""
    return getattr(field, "takes_batches", False)


def as_two_layer(field: Any) -> "TwoLayer | None":
    """A plain field as a `TwoLayer`, where it is one."""
    return getattr(field, "as_two_layer", lambda: None)()


def vjp_change(
    field: AbstractVectorField,
    t: Any,
    y: Float[Array, "*state"],
    cotangent: Float[Array, "*state"],
    distance: Float[Array, ""],
    rounding: Float[Array, ""],
) -> Float[Array, ""]:
    r"""A certified bound on $\|(J(z) - J(y))^\top v\|$ near $y$, $J$ the Jacobian.

    It holds for all $z$ with $\|z - y\| \le$ `distance`, where pre-activations are
    known up to `rounding`. A field without a bound of its own gets
    $2 L \|v\|$, $L$ its Lipschitz constant.
    """
    own: Any = getattr(field, "vjp_change", None)
    if own is not None:
        return own(t, y, cotangent, distance, rounding)
    return up(2 * field.lipschitz() * safe_norm(cotangent))


def bias_gain(field: AbstractVectorField) -> Float[Array, ""]:
    """A bound on how much a bias of a field counts in its value, at least 1."""
    if isinstance(field, Sum):
        return reduce(jnp.maximum, map(bias_gain, field.fields), jnp.ones(()))
    if isinstance(field, Scaled):
        return jnp.maximum(1, abs(field.factor) * bias_gain(field.field))
    form = as_two_layer(field)
    if form is None:
        return jnp.maximum(1, field.lipschitz())
    return jnp.maximum(1, jnp.abs(form.scale) * form.w_out.norm())


def of_shape(value: Any, y: Array) -> Any:
    """The value of a field with bounds, which must have the state's shape: the bounds
    are of the value as it is, not as NumPy would spread it over the state.

    **Raises:** `ValueError` for another shape.
    """
    if jnp.shape(value) != y.shape:
        raise ValueError(
            f"field must return an array of the state's shape {y.shape}, not "
            f"{jnp.shape(value)}."
        )
    return value


class Sum(AbstractVectorField):
    r"""$\sum_i f_i(t, y)$; `f + g` makes one.

    Its bounds are the sum of theirs (see `Bounds`).
    """

    fields: tuple[AbstractVectorField, ...]

    def __init__(self, fields: Sequence[AbstractVectorField]):
        """**Arguments:** at least one field, all on states of one shape.

        **Raises:** `ValueError` for no field.
        """
        if not fields:
            raise ValueError("fields must hold at least one field.")
        self.fields = tuple(fields)

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        terms: list[Array] = [of_shape(f(t, y, args), y) for f in self.fields]
        return sum(terms[1:], start=terms[0])

    @property
    def time_invariant(self) -> bool:
        return all(time_invariant(field) for field in self.fields)

    @property
    def takes_batches(self) -> bool:
        return all(takes_batches(field) for field in self.fields)

    def vjp_change(self, t, y, cotangent, distance, rounding) -> Float[Array, ""]:
        near = (t, y, cotangent, distance, rounding)
        first, *rest = (vjp_change(field, *near) for field in self.fields)
        return up(sum(rest, start=first))

    def bounds(self) -> Bounds:
        first, *rest = (field.bounds() for field in self.fields)
        return sum(rest, start=first)


class Scaled(AbstractVectorField):
    """$a f(t, y)$ for a finite number $a$; `a * f` makes one.

    With $a < 0$ time is reversed: it expands where $f$ contracts.
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
        return time_invariant(self.field)

    @property
    def takes_batches(self) -> bool:
        return takes_batches(self.field)

    def as_two_layer(self) -> "TwoLayer | None":
        form = as_two_layer(self.field)
        return None if form is None else form.times(self.factor)

    def vjp_change(self, t, y, cotangent, distance, rounding) -> Float[Array, ""]:
        change = vjp_change(
            self.field, t, y, self.factor * cotangent, distance, rounding
        )
        return up(change)

    def bounds(self) -> Bounds:
        return self.factor * self.field.bounds()


class AbstractUncertifiedField(AbstractVectorField):
    """A field of which nothing is certified."""

    @final
    def bounds(self) -> Bounds:
        return Bounds(jnp.inf)


class TwoLayer(eqx.Module):
    r"""An activation between two maps: $L\,V\sigma(Wy + b + t c) + d + t e$.

    The pre-activations $u = Wy$ satisfy an equation of their own, $\dot u =
    L\,WV\sigma(u + b + t c) + W(d + t e)$. Runge-Kutta steps commute with linear maps,
    so the same steps taken in this hidden space give the same $y$, up to rounding, with
    one map $WV$ in place of two in each evaluation: half the work.

    - `w_in`, `w_out`: $W$ and $V$.
    - `activation`, `scale`: $\sigma$ and $L$.
    - `bias`, `drift`: $b$ and $d$.
    - `time_coefficients`: $c$ and $e$, or `None` if the field does not depend on time.
    """

    w_in: AbstractLinear
    w_out: AbstractLinear
    activation: AbstractActivation
    scale: Float[Array, ""]
    bias: Float[Array, " hidden"]
    drift: Float[Array, " channels"] | None = None
    time_coefficients: TimeCoefficients | None = None

    def __call__(self, t: Any, y: Float[Array, "*state"]) -> Float[Array, "*state"]:
        hidden = self.activation(self.pre_activation(t, y))
        speed = self.scale.astype(y.dtype) * self.w_out(hidden)
        drift = self.drift
        if drift is None:
            return speed
        if self.time_coefficients is not None:
            drift = drift + jnp.asarray(t, drift.dtype) * self.time_coefficients[1]
        return add_bias(speed, drift)

    def pre_activation(
        self, t: Any, y: Float[Array, "*state"]
    ) -> Float[Array, "*hidden"]:
        """$Wy + b + t c$, the input of the activation."""
        bias = self.bias
        if self.time_coefficients is not None:
            bias = bias + jnp.asarray(t, bias.dtype) * self.time_coefficients[0]
        return add_bias(self.w_in(y), bias)

    def vjp_change(self, t, y, cotangent, distance, rounding) -> Float[Array, ""]:
        """The bound of the function `vjp_change` for a field of this form."""
        weights = self.scale.astype(y.dtype) * self.w_out.T(cotangent)
        norm = self.w_in.norm().astype(y.dtype)
        change = self.activation.vjp_change(
            self.pre_activation(t, y), weights, norm * distance, rounding
        )
        return up(norm * change)

    def times(self, factor: float) -> "TwoLayer":
        """The same, multiplied by a number."""
        drift = None if self.drift is None else factor * self.drift
        time_coefficients = self.time_coefficients
        if time_coefficients is not None:
            time_coefficients = (time_coefficients[0], factor * time_coefficients[1])
        parts = (self.w_in, self.w_out, self.activation, factor * self.scale)
        return TwoLayer(*parts, self.bias, drift, time_coefficients)

    def w_hidden(self) -> AbstractLinear | None:
        """$WV$ if it is a single map, else `None`."""
        loop = self.w_in @ self.w_out
        return None if isinstance(loop, Product) else loop

    def hidden_is_cheaper(self, evaluations: int, y: Float[Array, "*state"]) -> bool:
        """Whether this many evaluations take fewer multiplications in the hidden
        space, for a state or a batch of states (its axis before the last), counting
        the product of the two maps. A state by itself may be one of many under
        `jax.vmap`, which share that product, so then it does not count."""
        hidden, channels = len(self.bias), y.shape[-1]
        outer, product = 2 * channels * hidden, 0.0
        if y.ndim in (2, 4):
            product = channels * hidden**2 / max(y.shape[-2], 1)
        if outer + (evaluations - 1) * hidden**2 + product >= evaluations * outer:
            return False
        return self.w_hidden() is not None


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


def at_least_float32(x: Array) -> Any:
    """The dtype of `x`, or float32 if that has less precision. So a factor is the one
    that `bounds` reads, also where biases alone were cast to half precision."""
    return x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32


def safe_norm(x: Float[Array, "..."]) -> Float[Array, ""]:
    """The L2 norm, whose derivative at zero is 0 rather than NaN."""
    tiny = jnp.asarray(jnp.finfo(x.dtype).tiny, x.dtype)
    return jnp.sqrt(jnp.sum(x**2) + tiny)


def add_bias(
    x: Float[Array, "*grid channels"], bias: Float[Array, " entries"]
) -> Float[Array, "*grid channels"]:
    """`x + bias` with explicit ranks and dtypes, for JAX's strict promotion.

    **Raises:** `ValueError` for another number of channels, also for a single one, to
    which a bound of the sum would not refer.
    """
    if x.shape[-1:] != bias.shape:
        raise ValueError(
            f"bias must have one entry for each of the {x.shape[-1]} channels, not the "
            f"shape {bias.shape}."
        )
    return x + bias.reshape((1,) * (x.ndim - 1) + bias.shape).astype(x.dtype)
