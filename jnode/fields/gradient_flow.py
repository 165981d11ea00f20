"""The contractive field: steepest descent on a convex potential."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.activations import AbstractActivation, make_monotone
from jnode.bounds import Bounds, up
from jnode.fields.base import (
    AbstractVectorField,
    Scale,
    Shape,
    add_bias,
    check_rate,
    check_shape,
)
from jnode.fields.inner_form import InnerForm, inner_form
from jnode.linear import AbstractLinear, constrained
from jnode.linear.base import check_positive
from jnode.linear.compose import transposed


class GradientFlowField(AbstractVectorField):
    r"""A field whose trajectories never part.

    $f(t, y) = -\frac{L}{P} \sum_{p \le P} W_p^\top\sigma(W_p y + b_p) - \lambda y$ with
    $\|W_p\| \le 1$ and $\sigma$ monotone and 1-Lipschitz: minus the gradient of a
    convex potential. Its Jacobian is symmetric with eigenvalues in
    $[-L - \lambda, -\lambda]$, so its logarithmic norm is at most $-\lambda$, and an
    explicit Euler step is nonexpansive for $h(L + \lambda) \le 2$ (convex potential
    layers, Meunier et al., ICML 2022; Sherry et al., arXiv 2306.17332).
    """

    weights: tuple[AbstractLinear, ...]
    biases: tuple[Float[Array, " hidden"], ...]
    scale: Scale
    activation: AbstractActivation
    decay: float = eqx.field(static=True)

    def __init__(
        self,
        shape: Shape,
        *,
        lipschitz: float = 1.0,
        learnable: bool = False,
        hidden: int | None = None,
        potentials: int = 1,
        decay: float = 0.0,
        constraint: str = "cayley",
        kernel_size: int = 3,
        padding: str = "circular",
        activation: str = "relu",
        key: PRNGKeyArray,
    ):
        r"""**Arguments:**

        - `shape`: of the state: `(size,)` for dense maps, `(height, width, channels)`
            for convolutions.
        - `lipschitz`: the constant $L > 0$; with `learnable`, the cap below which it
            is learned.
        - `hidden`: inner units or channels; by default as many as the state has.
        - `potentials`: how many potentials $P$ stand side by side.
        - `decay`: $\lambda \ge 0$, the rate at which trajectories approach each other.
        - `constraint`, `kernel_size`, `padding`: of the maps, as in
            `jnode.linear.constrained`.
        - `activation`: a monotone one from `jnode.activations`.
        - `key`: of the initial weights.

        **Raises:** `ValueError` for any of these out of its range.
        """
        shape = check_shape(shape)
        check_positive(potentials=potentials)
        hidden = shape[-1] if hidden is None else hidden
        self.activation = make_monotone(activation, hidden, "gradient flow")
        self.weights = tuple(
            constrained(
                shape,
                hidden,
                constraint=constraint,
                kernel_size=kernel_size,
                padding=padding,
                key=k,
            )
            for k in jr.split(key, potentials)
        )
        self.biases = tuple(jnp.zeros(hidden) for _ in range(potentials))
        self.scale = Scale(lipschitz, learnable=learnable)
        self.decay = check_rate("decay", decay)

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        ascent = jnp.zeros_like(y)
        for map_, bias in zip(self.weights, self.biases, strict=True):
            weight = map_.bake()
            hidden = self.activation(add_bias(weight(y), bias))
            ascent = ascent + weight.transpose(hidden)
        descent = -self.scale(y.dtype) / len(self.weights) * ascent
        return descent - self.decay * y if self.decay else descent

    def vjp_change(
        self,
        t: Any,
        y: Float[Array, "*state"],
        cotangent: Float[Array, "*state"],
        distance: Float[Array, ""],
        rounding: Float[Array, ""],
    ) -> Float[Array, ""]:
        share = self.scale(y.dtype) / len(self.weights)
        total = jnp.zeros((), y.dtype)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            norm = weight.norm().astype(y.dtype)
            total = total + norm * self.activation.vjp_change(
                add_bias(weight(y), bias),
                share * weight(cotangent),
                norm * distance,
                rounding,
            )
        return up(total)

    @property
    def time_invariant(self) -> bool:
        return True

    @property
    def takes_batches(self) -> bool:
        return True

    def inner_form(self) -> InnerForm | None:
        if self.decay or len(self.weights) > 1:
            return None
        (weight,), (bias,) = self.weights, self.biases
        return inner_form(
            weight, transposed(weight), self.activation, -self.scale(bias.dtype), bias
        )

    def bounds(self) -> Bounds:
        squares = [weight.norm() ** 2 for weight in self.weights]
        mean = sum(squares[1:], start=squares[0]) / len(squares)
        lipschitz = up(self.scale(mean.dtype) * mean + self.decay)
        # Minus the gradient of a convex function whose gradient is L-Lipschitz is
        # 1/L-cocoercive (Baillon & Haddad 1977).
        return Bounds(lipschitz, (-lipschitz, -self.decay), 1 / up(lipschitz))
