"""The paper's field: orthogonal maps around an activation, scaled to a chosen L."""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.activations import AbstractActivation, make_activation
from jnode.bounds import Bounds, up
from jnode.fields.base import (
    AbstractVectorField,
    Scale,
    Shape,
    add_bias,
    check_shape,
)
from jnode.fields.inner_form import InnerForm, inner_form
from jnode.linear import AbstractLinear, constrained


class OrthoField(AbstractVectorField):
    r"""A field of Lipschitz constant $L$ from two orthogonal maps.

    $f(t, y) = L\,W_2\,\sigma(W_1 y + b_1 + t c_1) + b_2 + t c_2$ with $W_1, W_2$
    orthogonal (after Ortho-ODE, arXiv 2305.09179). Time is optional, and moves only
    the biases, so that the constant holds at every time.
    """

    first: AbstractLinear
    second: AbstractLinear
    first_bias: Float[Array, " hidden"]
    second_bias: Float[Array, " channels"]
    clocks: tuple[Float[Array, " hidden"], Float[Array, " channels"]] | None
    scale: Scale
    activation: AbstractActivation

    def __init__(
        self,
        shape: Shape,
        *,
        lipschitz: float = 1.0,
        learnable: bool = False,
        hidden: int | None = None,
        constraint: str = "cayley",
        kernel_size: int = 3,
        padding: str = "circular",
        activation: str = "relu",
        time: bool = False,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `shape`: of the state: `(size,)` for dense maps, `(height, width, channels)`
            for convolutions.
        - `lipschitz`: the constant $L > 0$; with `learnable`, the cap below which it
            is learned.
        - `hidden`: inner units or channels; by default as many as the state has.
        - `constraint`, `kernel_size`, `padding`: of the maps, as in
            `jnode.linear.constrained`.
        - `activation`: a name from `jnode.activations`.
        - `time`: whether the biases move with $t$.
        - `key`: of the initial weights.

        **Raises:** `ValueError` for any of these out of its range.
        """
        shape = check_shape(shape)
        hidden = shape[-1] if hidden is None else hidden
        self.activation = make_activation(activation, hidden)
        keys = jr.split(key, 2)
        options: dict[str, Any] = {
            "constraint": constraint,
            "kernel_size": kernel_size,
            "padding": padding,
        }
        self.first = constrained(shape, hidden, key=keys[0], **options)
        back = (*shape[:-1], hidden)
        self.second = constrained(back, shape[-1], key=keys[1], **options)
        self.first_bias = jnp.zeros(hidden)
        self.second_bias = jnp.zeros(shape[-1])
        self.clocks = (jnp.zeros(hidden), jnp.zeros(shape[-1])) if time else None
        self.scale = Scale(lipschitz, learnable=learnable)

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        field = self.bake()
        hidden = self.activation(field.inner(t, y))
        outer = self.second_bias
        if self.clocks is not None:
            outer = outer + jnp.asarray(t, outer.dtype) * self.clocks[1]
        return add_bias(self.scale(y.dtype) * field.second(hidden), outer)

    def inner(self, t: Any, y: Float[Array, "*state"]) -> Float[Array, "*hidden"]:
        """What the activation acts on, of a baked field."""
        bias = self.first_bias
        if self.clocks is not None:
            bias = bias + jnp.asarray(t, bias.dtype) * self.clocks[0]
        return add_bias(self.first(y), bias)

    def vjp_change(
        self,
        t: Any,
        y: Float[Array, "*state"],
        cotangent: Float[Array, "*state"],
        distance: Float[Array, ""],
        rounding: Float[Array, ""],
    ) -> Float[Array, ""]:
        weights = self.scale(y.dtype) * self.second.transpose(cotangent)
        norm = self.first.norm().astype(y.dtype)
        change = self.activation.vjp_change(
            self.inner(t, y), weights, norm * distance, rounding
        )
        return up(norm * change)

    @property
    def time_invariant(self) -> bool:
        return self.clocks is None

    @property
    def takes_batches(self) -> bool:
        return True

    def inner_form(self) -> InnerForm | None:
        return inner_form(
            self.first,
            self.second,
            self.activation,
            self.scale(self.first_bias.dtype),
            self.first_bias,
            self.second_bias,
            self.clocks,
        )

    def bounds(self) -> Bounds:
        norm = self.first.norm() * self.second.norm() * self.activation.lipschitz
        return Bounds(up(self.scale(norm.dtype) * norm))
