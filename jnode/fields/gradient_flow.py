"""The contractive field: steepest descent on a convex potential."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.activations import MONOTONE, get_activation
from jnode.fields.base import (
    AbstractVectorField,
    Scale,
    Shape,
    add_bias,
    check_shape,
    orthogonal,
)
from jnode.linear.base import AbstractLinear


class GradientFlowField(AbstractVectorField):
    r"""A field whose trajectories never part.

    $f(t, y) = -L\,W^\top\sigma(Wy + b)$ with $W$ orthogonal and $\sigma$ monotone and
    1-Lipschitz: minus the gradient of a convex potential. Its logarithmic norm is at
    most 0, and an explicit Euler step is nonexpansive for $hL \le 2$ (convex potential
    layers, Meunier et al., ICML 2022; Sherry et al., arXiv 2306.17332).
    """

    weight: AbstractLinear
    bias: Float[Array, " hidden"]
    scale: Scale
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        shape: Shape,
        *,
        lipschitz: float = 1.0,
        learnable: bool = False,
        hidden: int | None = None,
        kernel_size: int = 3,
        activation: str = "relu",
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `shape`: of the state: `(size,)` for dense maps, `(height, width, channels)`
            for circular convolutions.
        - `lipschitz`: the constant $L > 0$; with `learnable`, the cap below which it
            is learned.
        - `hidden`: inner units or channels; by default as many as the state has.
        - `kernel_size`: of the convolution's parameters: 1, 3 or 5.
        - `activation`: a monotone one: "relu" or "tanh".
        - `key`: of the initial weights.

        **Raises:** `ValueError` for any of these out of its range.
        """
        shape = check_shape(shape)
        get_activation(activation)
        if activation not in MONOTONE:
            raise ValueError(
                "activation of a gradient flow must be monotone, one of "
                f"{', '.join(MONOTONE)}, not {activation!r}."
            )
        hidden = shape[-1] if hidden is None else hidden
        self.weight = orthogonal(shape, hidden, kernel_size=kernel_size, key=key)
        self.bias = jnp.zeros(hidden)
        self.scale = Scale(lipschitz, learnable=learnable)
        self.activation = activation

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        weight = self.weight.bake()
        hidden = get_activation(self.activation)(add_bias(weight(y), self.bias))
        return -self.scale(y.dtype) * weight.transpose(hidden)

    def lipschitz(self) -> Float[Array, ""]:
        norm = self.weight.norm()
        return self.scale(norm.dtype) * norm**2

    def log_norm(self) -> Float[Array, ""]:
        return jnp.asarray(0.0)

    def cocoercivity(self) -> Float[Array, ""]:
        return 1 / self.lipschitz()

    def bake(self) -> "GradientFlowField":
        return eqx.tree_at(lambda f: f.weight, self, self.weight.bake())
