"""The paper's field: orthogonal maps around an activation, scaled to a chosen L."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.activations import get_activation
from jnode.fields.base import (
    AbstractVectorField,
    Scale,
    Shape,
    add_bias,
    check_shape,
    orthogonal,
)
from jnode.linear.base import AbstractLinear


class OrthoField(AbstractVectorField):
    r"""A field of Lipschitz constant $L$ from two orthogonal maps.

    $f(t, y) = L\,W_2\,\sigma(W_1 y + b_1) + b_2$ with $W_1, W_2$ orthogonal (after
    Ortho-ODE, arXiv 2305.09179).
    """

    first: AbstractLinear
    second: AbstractLinear
    first_bias: Float[Array, " hidden"]
    second_bias: Float[Array, " channels"]
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
        - `kernel_size`: of the convolutions' parameters: 1, 3 or 5.
        - `activation`: a name from `jnode.activations`.
        - `key`: of the initial weights.

        **Raises:** `ValueError` for any of these out of its range.
        """
        shape = check_shape(shape)
        hidden = shape[-1] if hidden is None else hidden
        get_activation(activation)
        keys = jr.split(key, 2)
        self.first = orthogonal(shape, hidden, kernel_size=kernel_size, key=keys[0])
        back = (*shape[:-1], hidden)
        self.second = orthogonal(back, shape[-1], kernel_size=kernel_size, key=keys[1])
        self.first_bias = jnp.zeros(hidden)
        self.second_bias = jnp.zeros(shape[-1])
        self.scale = Scale(lipschitz, learnable=learnable)
        self.activation = activation

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        field = self.bake()
        hidden = add_bias(field.first(y), self.first_bias)
        hidden = get_activation(self.activation)(hidden)
        out = self.scale(y.dtype) * field.second(hidden)
        return add_bias(out, self.second_bias)

    def lipschitz(self) -> Float[Array, ""]:
        norm = self.first.norm() * self.second.norm()
        return self.scale(norm.dtype) * norm

    def log_norm(self) -> Float[Array, ""]:
        return self.lipschitz()

    def cocoercivity(self) -> Float[Array, ""]:
        return jnp.asarray(0.0)

    def bake(self) -> "OrthoField":
        maps = (self.first.bake(), self.second.bake())
        return eqx.tree_at(lambda f: (f.first, f.second), self, maps)
