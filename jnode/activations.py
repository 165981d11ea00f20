"""Activations by name, each with a certified Lipschitz constant."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode._checks import Fixed
from jnode.bounds import gamma


class AbstractActivation(Fixed):
    """A map that acts on the channels of each position of a grid in the same way."""

    @abc.abstractmethod
    def __call__(
        self, x: Float[Array, "*grid channels"]
    ) -> Float[Array, "*grid channels"]:
        r"""$\sigma(x)$."""

    @property
    @abc.abstractmethod
    def lipschitz(self) -> float:
        """A certified upper bound on its L2 Lipschitz constant."""

    def vjp_change(
        self,
        x: Float[Array, "*grid channels"],
        cotangent: Float[Array, "*grid channels"],
        distance: Float[Array, ""],
        rounding: Float[Array, ""],
    ) -> Float[Array, ""]:
        r"""A certified bound on $\|(\sigma'(z) - \sigma'(x))^\top g\|$ near $x$.

        It holds for all $z$ with $\|z - x\| \le$ `distance`, where the entries of `x`
        are known up to `rounding`. The default uses the Lipschitz constant alone.
        """
        del x, distance, rounding
        tiny = jnp.asarray(jnp.finfo(cotangent.dtype).tiny, cotangent.dtype)
        return 2 * self.lipschitz * jnp.sqrt(jnp.sum(cotangent**2) + tiny)

    @property
    def slopes(self) -> tuple[float, float] | None:
        r"""$[\alpha, \beta]$ with $\sigma' \in [\alpha, \beta]$, $\alpha \ge 0$.

        Known where the activation is elementwise and monotone, that is, the gradient of
        a convex function; otherwise `None`.
        """
        return None


class Elementwise(AbstractActivation):
    r"""A monotone function of each entry.

    - `function`: the function of one entry.
    - `least`: its smallest slope; the largest is 1.
    - `curvature`: the Lipschitz constant of its slope; `None` if the slope jumps, which
        it may do only at 0.
    """

    function: Callable[[Array], Array] = eqx.field(static=True)
    least: float = eqx.field(static=True, default=0.0)
    curvature: float | None = eqx.field(static=True, default=None)

    def __call__(
        self, x: Float[Array, "*grid channels"]
    ) -> Float[Array, "*grid channels"]:
        return self.function(x)

    @property
    def lipschitz(self) -> float:
        return 1.0

    @property
    def slopes(self) -> tuple[float, float]:
        return (self.least, 1.0)

    def vjp_change(
        self,
        x: Float[Array, "*grid channels"],
        cotangent: Float[Array, "*grid channels"],
        distance: Float[Array, ""],
        rounding: Float[Array, ""],
    ) -> Float[Array, ""]:
        if self.curvature is not None:
            reach = self.curvature * (distance + rounding * x.size**0.5)
            return reach * jnp.max(jnp.abs(cotangent)) * (1 + 1e-5)
        return switching_bound(
            jnp.abs(x) - rounding, (1 - self.least) * cotangent, distance
        )


class GroupSort(AbstractActivation):
    """Sorts groups of channels, largest first (Anil, Lucas & Grosse, ICML 2019).

    Its Jacobian is a permutation, so it preserves the norm of gradients. Groups of 2
    are called MaxMin.
    """

    size: int = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "*grid channels"]
    ) -> Float[Array, "*grid channels"]:
        _check_groups(x.shape[-1], self.size, "maxmin or groupsort")
        groups = x.reshape(*x.shape[:-1], x.shape[-1] // self.size, self.size)
        if self.size == 2:
            a, b = groups[..., 0], groups[..., 1]
            pair = [jnp.maximum(a, b), jnp.minimum(a, b)]
            return jnp.stack(pair, axis=-1).reshape(x.shape)
        return jnp.sort(groups, axis=-1, descending=True).reshape(x.shape)

    @property
    def lipschitz(self) -> float:
        return 1.0

    def vjp_change(
        self,
        x: Float[Array, "*grid channels"],
        cotangent: Float[Array, "*grid channels"],
        distance: Float[Array, ""],
        rounding: Float[Array, ""],
    ) -> Float[Array, ""]:
        if self.size != 2:
            return super().vjp_change(x, cotangent, distance, rounding)
        # A pair changes places after a move of |a - b| / sqrt(2) at least, and then
        # moves its cotangent by sqrt(2) |g - h|.
        a, b = x[..., 0::2], x[..., 1::2]
        g, h = cotangent[..., 0::2], cotangent[..., 1::2]
        costs = (jnp.abs(a - b) - 2 * rounding) / 2**0.5
        return switching_bound(costs, 2**0.5 * (g - h), distance)


class Householder(AbstractActivation):
    r"""Reflects pairs of channels at a learned line (Singla et al., ICLR 2022).

    A pair $z$ stays where $\langle v, z\rangle > 0$ and becomes $z - 2v\langle v,
    z\rangle$ elsewhere, $v = (\sin\theta/2, -\cos\theta/2)$. It is continuous and
    preserves the norm of gradients. At $\theta = \pi/2$ it is MaxMin.
    """

    angle: Float[Array, " pairs"]

    def __init__(self, channels: int):
        """**Arguments:** the number of channels, even. Starts as MaxMin."""
        _check_groups(channels, 2, "householder")
        self.angle = jnp.full(channels // 2, jnp.pi / 2)

    def __call__(
        self, x: Float[Array, "*grid channels"]
    ) -> Float[Array, "*grid channels"]:
        pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
        half = (self.angle / 2).astype(x.dtype)
        v = jnp.stack([jnp.sin(half), -jnp.cos(half)], axis=-1)
        v = v.reshape((1,) * (pairs.ndim - 2) + v.shape)
        product = jnp.sum(pairs * v, axis=-1, keepdims=True)
        return (pairs - 2 * v * jnp.minimum(product, 0)).reshape(x.shape)

    @property
    def lipschitz(self) -> float:
        # |v| is 1 but for the rounding of sine and cosine, a few units of float32.
        return 1 + 2e-6


def switching_bound(
    costs: Float[Array, "*units"],
    gains: Float[Array, "*units"],
    budget: Float[Array, ""],
) -> Float[Array, ""]:
    r"""A bound on $\sqrt{\sum_S g_i^2}$ over all $S$ with $\sum_S c_i^2 \le b^2$.

    $S$ is a set of units that a perturbation of norm $b$ can switch together: to switch
    unit $i$, the perturbation of its pre-activation must be at least $c_i$ (nothing if
    $c_i \le 0$). This is a knapsack problem; the bound is its fractional relaxation,
    which a greedy choice solves exactly up to rounding (Dantzig 1957).
    """
    costs = jnp.square(jnp.maximum(costs.ravel(), 0))
    gains = jnp.square(gains.ravel())
    # Tiny costs count as zero, so that no derivative overflows.
    costs = jnp.where(costs < 1e-12, 0, costs)
    tiny = jnp.asarray(jnp.finfo(costs.dtype).tiny * 1e6, costs.dtype)
    slack = 2 * gamma(costs.size + 8, costs.dtype)
    order = jnp.argsort(-gains / jnp.maximum(costs, tiny))
    costs, gains = costs[order], gains[order]
    before = jnp.concatenate([jnp.zeros_like(costs[:1]), jnp.cumsum(costs)[:-1]])
    # The fraction of each unit that fits into the remaining budget.
    share = budget**2 * (1 + slack) - before * (1 - slack)
    share = jnp.clip(share / jnp.where(costs > 0, costs, 1), 0, 1)
    share = jnp.where(costs > 0, share, 1)
    # The tiny addend keeps the derivative finite at zero.
    return jnp.sqrt(jnp.sum(share * gains) + tiny) * (1 + slack)


def _check_groups(channels: int, size: int, name: str) -> None:
    if channels % size:
        raise ValueError(
            f"{name} in groups of {size} needs a multiple of {size} channels, not "
            f"{channels}: an even number for pairs, or choose another activation."
        )


def _leaky_relu(x):
    return jnp.where(x >= 0, x, 0.1 * x)


def _softplus(x):
    return jax.nn.softplus(x)


_KNOWN: dict[str, Callable[[int], AbstractActivation]] = {
    "relu": lambda channels: Elementwise(jax.nn.relu),
    "leaky_relu": lambda channels: Elementwise(_leaky_relu, 0.1),
    "tanh": lambda channels: Elementwise(jnp.tanh, curvature=0.77),
    "softplus": lambda channels: Elementwise(_softplus, curvature=0.25),
    "maxmin": lambda channels: GroupSort(2),
    "groupsort": lambda channels: GroupSort(4),
    "householder": Householder,
}
ACTIVATIONS = tuple(_KNOWN)
"""The known names, all 1-Lipschitz in L2 up to rounding."""

MONOTONE = ("relu", "leaky_relu", "tanh", "softplus")
"""The elementwise ones with slopes in [0, 1], which gradient flows need."""


def make_activation(name: str, channels: int) -> AbstractActivation:
    """The activation of this name.

    **Arguments:** "relu", "leaky_relu" (slope 0.1), "tanh", "softplus", "maxmin" (pairs
    sorted), "groupsort" (groups of 4 sorted) or "householder" (learned); and the number
    of channels it will act on.

    **Raises:** `ValueError` for another name or a number of channels that does not fit.
    """
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation must be one of {known}, not {name!r}.")
    activation = _KNOWN[name](channels)
    if isinstance(activation, GroupSort):
        _check_groups(channels, activation.size, name)
    return activation


def make_monotone(name: str, channels: int, field: str) -> AbstractActivation:
    """As `make_activation`, for a monotone one.

    **Raises:** `ValueError` for an activation that is not monotone.
    """
    activation = make_activation(name, channels)
    known_slopes(activation, field)
    return activation


def is_known(activation: AbstractActivation) -> bool:
    """Whether its bounds are known here, and not a claim about a function of yours."""
    if not isinstance(activation, Elementwise):
        return type(activation) in (GroupSort, Householder)
    known = [make_activation(name, 1) for name in MONOTONE]
    parts = (activation.function, activation.least, activation.curvature)
    return any(parts == (x.function, x.least, x.curvature) for x in known)  # pyright: ignore[reportAttributeAccessIssue]  # all are Elementwise


def known_slopes(activation: AbstractActivation, field: str) -> tuple[float, float]:
    """The `slopes` of the activation of a field.

    A field asks for them whenever it computes its bounds, since its activation may have
    been exchanged for another.

    **Raises:** `ValueError` for an activation that is not monotone.
    """
    slopes = activation.slopes
    if slopes is None or not 0 <= slopes[0] <= slopes[1] < float("inf"):
        raise ValueError(
            f"activation of a {field} must be monotone, one of {', '.join(MONOTONE)}, "
            f"or one of your own with slopes, not {activation}."
        )
    return slopes
