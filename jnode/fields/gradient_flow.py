"""The contractive field: steepest descent on a convex potential."""

from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode._checks import check_positive, check_rate, check_shape
from jnode.activations import AbstractActivation, known_slopes, make_monotone
from jnode.bounds import Bounds, times, up
from jnode.constraints import AbstractConstraint, constrained, plain
from jnode.fields.base import (
    AbstractVectorField,
    Scale,
    Shape,
    TwoLayer,
    at_least_float32,
)
from jnode.linear import AbstractLinear


class GradientFlowField(AbstractVectorField):
    r"""A gradient flow, whose trajectories never move apart (a contraction).

    $f(t, y) = -\frac{L}{P} \sum_{p \le P} W_p^\top\sigma(W_p y + b_p) - \lambda y$ with
    $\|W_p\| \le 1$ and $\sigma$ monotone and 1-Lipschitz: minus the gradient of a
    convex potential. Its Jacobian is symmetric with eigenvalues in
    $[-L - \lambda, -\lambda]$, so its logarithmic norm is at most $-\lambda$, and an
    explicit Euler step is nonexpansive for $h(L + \lambda) \le 2$ (convex potential
    layers, Meunier et al., ICML 2022; Sherry et al., arXiv 2306.17332).
    """

    _jnode_fixed = ("_layers",)

    weights: tuple[AbstractLinear, ...]
    biases: tuple[Float[Array, " hidden"], ...]
    scale: Scale
    activation: AbstractActivation
    decay: float = eqx.field(static=True)

    takes_batches = True
    time_invariant = True

    def __init__(
        self,
        shape: Shape,
        *,
        lipschitz: float = 1.0,
        learnable: bool = False,
        hidden: int | None = None,
        potentials: int = 1,
        decay: float = 0.0,
        constraint: str | AbstractConstraint = "cayley",
        kernel_size: int = 3,
        padding: str = "circular",
        activation: str = "relu",
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `potentials`: the number $P$ of potentials, at least 1.
        - `decay`: $\lambda \ge 0$, the rate at which trajectories approach each other.
        - `activation`: a monotone one from `jnode.activations`.
        - all others: as for `OrthoField`.

        **Raises:** `ValueError` for any of these out of its range.
        """
        shape = check_shape(shape)
        check_positive(potentials=potentials)
        hidden = shape[-1] if hidden is None else hidden
        self.activation = make_monotone(activation, hidden, "gradient flow")
        build = partial(
            constrained, constraint=constraint, kernel_size=kernel_size, padding=padding
        )
        keys = jr.split(key, potentials)
        self.weights = tuple(build(shape, hidden, key=key) for key in keys)
        self.biases = tuple(jnp.zeros(hidden) for _ in range(potentials))
        self.scale = Scale(lipschitz, learnable=learnable)
        self.decay = check_rate("decay", decay)

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        first, *rest = (layers(t, y) for layers in plain(self)._layers())
        descent = sum(rest, start=first)
        return descent - self.decay * y if self.decay else descent

    def _layers(self) -> list[TwoLayer]:
        """Minus the gradient of each potential."""
        share = -self.scale(at_least_float32(self.biases[0])) / len(self.weights)
        pairs = zip(self.weights, self.biases, strict=True)
        return [TwoLayer(w, w.T, self.activation, share, b) for w, b in pairs]

    def as_two_layer(self) -> TwoLayer | None:
        if self.decay or len(self.weights) > 1:
            return None
        return self._layers()[0]

    def vjp_change(self, t, y, cotangent, distance, rounding) -> Float[Array, ""]:
        near = (t, y, cotangent, distance, rounding)
        first, *rest = (layers.vjp_change(*near) for layers in self._layers())
        return up(sum(rest, start=first))

    def bounds(self) -> Bounds:
        check_rate("decay", self.decay)
        norms = [weight.norm() for weight in self.weights]
        squares = [times(norm, norm) for norm in norms]
        mean = times(1 / len(squares), sum(squares[1:], start=squares[0]))
        mean = times(known_slopes(self.activation, "gradient flow")[1], mean)
        lipschitz = up(times(self.scale(mean.dtype), mean) + self.decay)
        # Minus the gradient of a convex function whose gradient is L-Lipschitz is
        # 1/L-cocoercive (Baillon & Haddad 1977).
        return Bounds(lipschitz, (-lipschitz, -self.decay), 1 / up(lipschitz))
