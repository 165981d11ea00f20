r"""Certified constants of a vector field as one value, and the algebra of such values.

Every operation rounds outwards, so a bound computed in float32 or float64 holds in
exact arithmetic. Rounding allowances are those of Higham, *Accuracy and Stability of
Numerical Algorithms* (2002), section 3: a dot product of length $n$ errs by at most
$\gamma_n |x|^\top |y|$, $\gamma_n = nu/(1-nu)$.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

CERTIFIABLE = ("float32", "float64")
"""The types in which a bound can be certified."""

# How far a claim may exceed what its Lipschitz constant allows before it is called
# false: more than rounding can explain, in float32.
_TOLERANCE = 1e-4


class Bounds(eqx.Module):
    r"""Certified bounds of a vector field $f(t, \cdot)$, holding at every $t$.

    All refer to the L2 norm of the ravelled state, and hold for every Jacobian $J$ of
    the field (or, where it is not differentiable, for every difference quotient).

    - `lipschitz`: $L \ge \|J\|_2$; `inf` where none is known.
    - `log_norm`: two numbers $(\mu_-, \mu_+)$ between which all eigenvalues of
      $(J + J^\top)/2$ lie. $\mu_+$ bounds the logarithmic norm of $f$ from above, and
      $-\mu_-$ that of $-f$, the field of reversed time (Söderlind, BIT 2006).
    - `cocoercivity`: $c \ge 0$ with $\langle f(y) - f(z), y - z\rangle \le
      -c\,\|f(y) - f(z)\|^2$, which is what explicit Runge-Kutta steps need to be
      nonexpansive (Sherry et al., 2024, arXiv 2306.17332); 0 where none is known.

    Bounds add up (`+`), take factors of either sign (`*`), compose (`@`), and follow a
    field through a linear map (`congruence`).
    """

    lipschitz: Float[Array, "*stack"]
    log_norm: tuple[Float[Array, "*stack"], Float[Array, "*stack"]]
    cocoercivity: Float[Array, "*stack"]

    def __init__(
        self,
        lipschitz: ArrayLike,
        log_norm: tuple[ArrayLike, ArrayLike] | None = None,
        cocoercivity: ArrayLike = 0.0,
    ):
        r"""**Arguments:** numbers, or arrays [*stack] for a stack of fields:

        - `lipschitz`: at least 0, or `inf`.
        - `log_norm`: $(\mu_-, \mu_+)$, each within $[-L, L]$ or infinite; by default
          $(-L, L)$, which follows from the Lipschitz constant.
        - `cocoercivity`: at least 0 and at most $1/L$. If $\mu_+ < 0$ a cocoercivity of
            $-\mu_+/L^2$ follows, which is used if it is larger.

        **Raises:** `ValueError` for numbers that contradict each other (traced numbers
        that do so make `lipschitz` `inf` instead), `TypeError` for a dtype that is
        neither float32 nor float64.
        """
        low, high = (-np.inf, np.inf) if log_norm is None else log_norm
        dtype = _dtype(lipschitz, low, high, cocoercivity)
        lipschitz, high = _up(lipschitz, dtype), _up(high, dtype)
        low, c = -_up(_negated(low), dtype), -_up(_negated(cocoercivity), dtype)
        contradictory = _contradiction(lipschitz, low, high, c)
        # Traced numbers cannot be checked here: if they contradict, L becomes inf.
        lipschitz = jnp.where(contradictory, jnp.inf, lipschitz)
        low, high = (
            jnp.where(contradictory, -jnp.inf, low),
            jnp.where(contradictory, jnp.inf, high),
        )
        c = jnp.where(contradictory, 0, c)
        self.lipschitz = lipschitz
        low = jnp.maximum(low, -lipschitz)
        high = jnp.minimum(high, lipschitz)
        self.log_norm = (low, high)
        self.cocoercivity = jnp.maximum(c, _contraction(high, lipschitz))

    def __add__(self, other: "Bounds") -> "Bounds":
        """The bounds of $f + g$.

        Constants and logarithmic norms add up. The cocoercivity is the harmonic sum,
        as $|u|^2/a + |v|^2/b \\ge |u + v|^2/(a + b)$.
        """
        (a, b), (c, d) = self.log_norm, other.log_norm
        inverse = _sum(_inverse(self.cocoercivity), _inverse(other.cocoercivity))
        return Bounds(
            up(_sum(self.lipschitz, other.lipschitz)),
            (-_outward(-a, -c), _outward(b, d)),
            down(1 / up(inverse)),
        )

    def __mul__(self, factor: float) -> "Bounds":
        """The bounds of $a f$ for a finite number $a$ of either sign."""
        if factor != 0 and not 1e-30 <= abs(factor) <= 1e30:
            raise ValueError(
                "factor must be finite, and between 1e-30 and 1e30 in size where it is "
                f"not 0, so that bounds are numbers in float32; it is {factor!r}."
            )
        if factor == 0:
            zero = jnp.zeros_like(self.lipschitz)
            return Bounds(zero, (zero, zero), zero)
        size, (low, high) = abs(float(factor)), self.log_norm
        c = self.cocoercivity
        if factor < 0:
            # The time-reversed field expands where the field contracts.
            low, high, c = -high, -low, jnp.zeros_like(c)
        return Bounds(
            up(times(size, self.lipschitz)),
            (-up(times(size, -low)), up(times(size, high))),
            down(c / size),
        )

    __rmul__ = __mul__

    def __neg__(self) -> "Bounds":
        """The bounds of $-f$, the time-reversed field."""
        return -1.0 * self

    def __matmul__(self, inner: "Bounds") -> "Bounds":
        """The bounds of $f(t, g(t, y))$: Lipschitz constants multiply, no more is
        known."""
        return Bounds(up(times(self.lipschitz, inner.lipschitz)))

    def congruence(self, norm: Float[Array, "*stack"]) -> "Bounds":
        r"""The bounds of $W^\top f(t, Wy)$ with $\|W\|_2 \le$ `norm`.

        Its Jacobian is $W^\top J W$, so a logarithmic norm of at most 0 stays one, and
        $c$-cocoercivity becomes $c/\|W\|^2$-cocoercivity.
        """
        square = up(times(norm, norm))
        low, high = self.log_norm
        return Bounds(
            up(times(square, self.lipschitz)),
            (
                down(-times(square, jnp.maximum(-low, 0))),
                up(times(square, jnp.maximum(high, 0))),
            ),
            jnp.where(self.cocoercivity > 0, down(self.cocoercivity / square), 0),
        )

    def over_time(self) -> "Bounds":
        """The bounds that hold at all times, from bounds stacked along a first axis."""
        low, high = self.log_norm
        return Bounds(
            jnp.max(self.lipschitz, axis=0),
            (jnp.min(low, axis=0), jnp.max(high, axis=0)),
            jnp.min(self.cocoercivity, axis=0),
        )


def unit_roundoff(dtype) -> float:
    """$u$: half the spacing of `dtype` at 1.

    **Raises:** `TypeError` for a type that is neither float32 nor float64. In half
    precision the allowances would exceed what they are allowances for.
    """
    if np.dtype(dtype).name not in CERTIFIABLE:
        raise TypeError(
            "Bounds and constraints are computed in float32 or float64, not in "
            f"{np.dtype(dtype).name}: cast the arrays to float32. To evaluate a "
            "model in half precision, cast what jnode.resolve returns; nothing is "
            "certified of that."
        )
    return float(jnp.finfo(dtype).eps) / 2


def gamma(n: int, dtype) -> float:
    r"""$\gamma_n$ of Higham, for sums of `n` products in `dtype`; `inf` if $nu \ge 1$,
    where nothing is known.

    **Raises:** `TypeError` as `unit_roundoff`.
    """
    nu = n * unit_roundoff(dtype)
    return nu / (1 - nu) if nu < 1 else float("inf")


def up(bound: Float[Array, "*stack"]) -> Float[Array, "*stack"]:
    """The value rounded up, by more than a few products and sums can have erred."""
    size = jnp.where(jnp.isfinite(bound), jnp.abs(bound), 0)
    return bound + 32 * unit_roundoff(bound.dtype) * size


def down(bound: Float[Array, "*stack"]) -> Float[Array, "*stack"]:
    """The value rounded down, by more than a few products and sums can have erred."""
    return -up(-bound)


def times(x: ArrayLike, y: ArrayLike) -> Float[Array, "*stack"]:
    """The product of a factor that is not negative and a bound from above, numbers or
    arrays [*stack], in which 0 times unknown is 0.

    If both are positive it does not underflow to 0. It is not rounded up; see `up`.
    """
    dtype = _dtype(x, y)
    x, y = (jnp.asarray(a, dtype) for a in (x, y))
    zero = (x == 0) | (y == 0)
    product = x * jnp.where(zero, 0, y)
    least = jnp.where(y > 0, jnp.maximum(product, jnp.finfo(dtype).tiny), product)
    return jnp.where(zero, 0, least)


def _sum(x, y):
    dtype = _dtype(x, y)
    return x.astype(dtype) + y.astype(dtype)


def _outward(x, y):
    # Terms of both signs: the allowance is relative to their sizes.
    size = _sum(jnp.abs(x), jnp.abs(y))
    size = jnp.where(jnp.isfinite(size), size, 0)
    return _sum(x, y) + 32 * unit_roundoff(size.dtype) * size


def _inverse(c):
    return jnp.where(c > 0, 1 / jnp.where(c > 0, c, 1), jnp.inf)


def _contraction(high, lipschitz):
    r"""$c = -\mu / L^2$ where $\mu < 0$: then $\langle\Delta f, \Delta y\rangle \le
    \mu\|\Delta y\|^2 \le -c\|\Delta f\|^2$; 0 elsewhere."""
    contracts = high < 0
    # A square may underflow. No field is more than 1/L-cocoercive.
    constant = jnp.where(contracts, lipschitz, 1)
    found = down(jnp.minimum(-high / constant, 1) / constant)
    return jnp.where(contracts, found, 0)


def _negated(x):
    return -x if isinstance(x, jax.Array) else -np.asarray(x)


def _dtype(*values: ArrayLike) -> np.dtype:
    """The dtype of the arrays among these; Python numbers take the arrays' dtype.

    **Raises:** `TypeError` for half precision.
    """
    if any(jnp.issubdtype(jnp.result_type(x), jnp.complexfloating) for x in values):
        raise TypeError(
            "Bounds must be of real arrays, not of complex ones: write these as "
            "their real and imaginary parts."
        )
    found = [np.dtype(x.dtype) for x in values if isinstance(x, jax.Array)]
    found = [x for x in found if jnp.issubdtype(x, jnp.floating)]
    for dtype in found:
        unit_roundoff(dtype)
    return np.result_type(*found) if found else jnp.zeros(()).dtype


def _up(x: ArrayLike, dtype: np.dtype) -> Array:
    """The value as an array of `dtype`, rounded up if that is less precise."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(dtype)
    if isinstance(x, Tracer):
        return up(jnp.asarray(x, dtype))
    exact = np.asarray(x)
    short = np.asarray(exact, dtype)
    below = short.astype(np.float64) < exact.astype(np.float64)
    above = np.nextafter(short, np.asarray(np.inf, dtype))
    return jnp.asarray(np.where(below, above, short))


def _contradiction(lipschitz, low, high, c):
    """Raises if the claims contradict each other; returns an array if they are
    traced."""
    largest = lipschitz * (1 + _TOLERANCE)
    outside = [jnp.isfinite(x) & (jnp.abs(x) > largest) for x in (low, high)]
    positive = lipschitz > 0
    most = jnp.where(positive, 1 / jnp.where(positive, lipschitz, 1), jnp.inf)
    faults = (
        (~(lipschitz >= 0), f"lipschitz must be at least 0, not {lipschitz}."),
        (
            ~(low <= high) | (low == jnp.inf) | (high == -jnp.inf),
            f"log_norm must be a lower and an upper bound, in this order, not ({low}, "
            f"{high}).",
        ),
        (
            outside[0] | outside[1],
            f"log_norm must lie within -lipschitz and lipschitz, which is {lipschitz}; "
            f"({low}, {high}) does not: one of the two claims is wrong.",
        ),
        (~(c >= 0), f"cocoercivity must be at least 0, not {c}."),
        (
            c > most * (1 + _TOLERANCE),
            f"cocoercivity must be at most 1 / lipschitz = {most}, not {c}: a field "
            "that is c-cocoercive has a Lipschitz constant of 1 / c.",
        ),
    )
    found = jnp.zeros_like(lipschitz, bool)
    for fault, message in faults:
        if not isinstance(fault, Tracer) and np.any(fault):
            raise ValueError(message)
        found = found | fault
    return found
