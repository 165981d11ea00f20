r"""Fields around a skew-symmetric matrix: small logarithmic norms in both directions.

Both use one lemma. For skew-symmetric $K$ with $\|K\| \le k$, a symmetric $S$ with
eigenvalues in $[\alpha, \beta]$ and a damping $\gamma \ge 0$, all eigenvalues of the
symmetric part of $(K - \gamma I)S$, and of $S(K - \gamma I)$, lie between

$-\gamma\alpha + \frac{\beta - \alpha}{2}(\pm\sqrt{k^2 + \gamma^2} - \gamma)$.

For $x^\top(K - \gamma I)Sx$ is linear in $S$, so extreme where $S = \alpha I + (\beta -
\alpha)P$ with a projection $P$; there $|x^\top K P x| \le k\,\|Px\|\,\|x - Px\|$, and
the extrema of $\pm k \sin\theta\cos\theta - \gamma\cos^2\theta$ are
$(\pm\sqrt{k^2 + \gamma^2} - \gamma)/2$.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jnode._checks import check_rate, check_shape
from jnode.activations import AbstractActivation, known_slopes, make_monotone
from jnode.bounds import Bounds, down, times, up
from jnode.constraints import AbstractConstraint, constrained, plain
from jnode.fields.base import AbstractVectorField, Scale, Shape, add_bias
from jnode.linear import AbstractLinear, AbstractPlain


def damped_log_norm(
    skew: Float[Array, ""], damping: float, low: float, high: Float[Array, ""] | float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""The lemma's two bounds for $\|K\| \le$ `skew` and $S \in [$`low`, `high`$]$.

    $\sqrt{k^2 + \gamma^2} - \gamma$ is computed as $k^2 / (\sqrt{k^2 + \gamma^2} +
    \gamma)$, which loses no digits. Both are rounded outwards.
    """
    half, tiny = (high - low) / 2, jnp.finfo(skew.dtype).tiny
    root = jnp.hypot(skew, damping)  # squares may underflow
    gain = up(half * skew * (skew / jnp.maximum(root + damping, tiny)))
    loss = up(half * (root + damping) + damping * low)
    # The subtrahend is rounded down.
    return -loss, gain - damping * low * (1 - 1e-6)


class SkewField(AbstractVectorField):
    r"""$f(t, y) = L\,\sigma((A - A^\top)y - \gamma y + b)$ with $\|A - A^\top\| \le 1$.

    The stable architecture of Haber & Ruthotto (Inverse Problems 2017), with the norm
    of the skew-symmetric part bounded. $\sigma$ is monotone. Its Lipschitz constant is
    $L\sqrt{1 + \gamma^2}$, its logarithmic norm at most
    $L(\sqrt{1 + \gamma^2} - \gamma)/2$: half the constant at $\gamma = 0$, and towards
    0 as the damping grows; below 0 for slopes that stay positive (leaky relu).
    """

    _jnode_fixed = ("inner",)

    half: AbstractLinear
    bias: Float[Array, " channels"]
    scale: Scale
    activation: AbstractActivation
    damping: float = eqx.field(static=True)

    takes_batches = True
    time_invariant = True

    def __init__(
        self,
        shape: Shape,
        *,
        lipschitz: float = 1.0,
        learnable: bool = False,
        damping: float = 0.0,
        constraint: str | AbstractConstraint = "rescaled",
        kernel_size: int = 3,
        padding: str = "circular",
        activation: str = "tanh",
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `lipschitz`: the factor $L$.
        - `damping`: $\gamma \ge 0$.
        - `activation`: a monotone one from `jnode.activations`.
        - all others: as for `OrthoField`; those of the maps refer to $2A$.

        **Raises:** `ValueError` for any of these out of its range.
        """
        shape = check_shape(shape)
        self.activation = make_monotone(activation, shape[-1], "skew field")
        options = {"kernel_size": kernel_size, "padding": padding, "key": key}
        self.half = constrained(shape, shape[-1], constraint=constraint, **options)
        self.bias = jnp.zeros(shape[-1])
        self.scale = Scale(lipschitz, learnable=learnable)
        self.damping = check_rate("damping", damping)

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        return self.scale(y.dtype) * self.activation(self.inner(y))

    def inner(self, y: Float[Array, "*state"]) -> Float[Array, "*state"]:
        """The input of the activation."""
        half = plain(self.half)
        if isinstance(half, AbstractPlain):  # one map, so half the work
            turned = (half - half.T)(y)
        else:
            turned = half(y) - half.T(y)
        return add_bias(0.5 * turned - self.damping * y, self.bias)

    def vjp_change(self, t, y, cotangent, distance, rounding) -> Float[Array, ""]:
        # |K - gamma I|^2 = |K|^2 + gamma^2, as K is normal.
        norm = up(jnp.hypot(self.half.norm(), self.damping))
        norm = norm.astype(y.dtype)
        change = self.activation.vjp_change(
            self.inner(y), self.scale(y.dtype) * cotangent, norm * distance, rounding
        )
        return up(norm * change)

    def bounds(self) -> Bounds:
        norm = self.half.norm()
        slopes = known_slopes(self.activation, "skew field")
        scale = self.scale(norm.dtype)
        low, high = damped_log_norm(norm, self.damping, *slopes)
        both = jnp.maximum(jnp.hypot(norm, self.damping), norm)
        lipschitz = up(times(scale, times(slopes[1], both)))
        return Bounds(lipschitz, (down(scale * low), up(scale * high)))


class HamiltonianField(AbstractVectorField):
    r"""A Hamiltonian system with dissipation: $f(t, y) = L(J - \gamma I)\nabla H(y)$.

    $H(y) = \Sigma(Wy + b) + \frac{\kappa}{2}|y|^2$ with $\|W\| \le 1$ and $\Sigma$ the
    convex potential of $\sigma$; $J$ exchanges the halves of the channels (positions
    and momenta) with a sign. Energy is kept at $\gamma = 0$ and lost otherwise; where
    $\gamma\kappa > (\sqrt{1 + \gamma^2} - \gamma)/2$ the logarithmic norm is negative
    and trajectories approach each other (after contractive Hamiltonian neural ODEs,
    Zakwan et al., IEEE L-CSS 2023).
    """

    weight: AbstractLinear
    bias: Float[Array, " hidden"]
    scale: Scale
    activation: AbstractActivation
    damping: float = eqx.field(static=True)
    convexity: float = eqx.field(static=True)

    takes_batches = True
    time_invariant = True

    def __init__(
        self,
        shape: Shape,
        *,
        lipschitz: float = 1.0,
        learnable: bool = False,
        hidden: int | None = None,
        damping: float = 1.0,
        convexity: float = 0.5,
        constraint: str | AbstractConstraint = "cayley",
        kernel_size: int = 3,
        padding: str = "circular",
        activation: str = "tanh",
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `shape`: the state's shape, whose last entry must be even.
        - `lipschitz`: the factor $L$.
        - `damping`, `convexity`: $\gamma \ge 0$ and $\kappa \ge 0$.
        - `activation`: a monotone one from `jnode.activations`.
        - all others: as for `OrthoField`.

        **Raises:** `ValueError` for any of these out of its range.
        """
        shape = check_shape(shape)
        if shape[-1] % 2:
            raise ValueError(
                "shape of a Hamiltonian field must end in an even number (positions "
                f"and momenta), not {shape[-1]}."
            )
        hidden = shape[-1] if hidden is None else hidden
        self.activation = make_monotone(activation, hidden, "Hamiltonian field")
        options = {"kernel_size": kernel_size, "padding": padding, "key": key}
        self.weight = constrained(shape, hidden, constraint=constraint, **options)
        self.bias = jnp.zeros(hidden)
        self.scale = Scale(lipschitz, learnable=learnable)
        self.damping = check_rate("damping", damping)
        self.convexity = check_rate("convexity", convexity)

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        weight = plain(self.weight)
        hidden = self.activation(add_bias(weight(y), self.bias))
        gradient = weight.T(hidden) + self.convexity * y
        q, p = jnp.split(gradient, 2, axis=-1)
        turned = jnp.concatenate([p, -q], axis=-1) - self.damping * gradient
        return self.scale(y.dtype) * turned

    def vjp_change(self, t, y, cotangent, distance, rounding) -> Float[Array, ""]:
        # The transpose of J - gamma I, its norm in the cotangent.
        q, p = jnp.split(cotangent, 2, axis=-1)
        turned = jnp.concatenate([-p, q], axis=-1) - self.damping * cotangent
        norm = self.weight.norm().astype(y.dtype)
        change = self.activation.vjp_change(
            add_bias(self.weight(y), self.bias),
            self.scale(y.dtype) * self.weight(turned),
            norm * distance,
            rounding,
        )
        return up(norm * change)

    def bounds(self) -> Bounds:
        steepest = known_slopes(self.activation, "Hamiltonian field")[1]
        norm = self.weight.norm()
        largest = up(self.convexity + times(steepest, times(norm, norm)))
        one, scale = jnp.ones_like(largest), self.scale(largest.dtype)
        low, high = damped_log_norm(one, self.damping, self.convexity, largest)
        lipschitz = up(scale * largest * (1 + self.damping**2) ** 0.5)
        return Bounds(lipschitz, (down(scale * low), up(scale * high)))
