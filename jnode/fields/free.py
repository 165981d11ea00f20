"""The ODENet field, without any constraint."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.activations import AbstractActivation, make_activation
from jnode.fields.base import (
    AbstractUncertifiedField,
    Shape,
    add_bias,
    check_shape,
)
from jnode.fields.inner_form import InnerForm, inner_form
from jnode.linear import CircularConv, Conv, Dense
from jnode.linear.base import AbstractLinear


class FreeField(AbstractUncertifiedField):
    r"""Two free maps around an activation (ODENet: Chen et al., NeurIPS 2018).

    $f(t, y) = W_2\,\sigma(W_1 [y, t] + b_1) + b_2$, where time and the normalisation
    of groups of channels are optional. Nothing constrains it, and nothing is certified.
    """

    first: AbstractLinear
    second: AbstractLinear
    first_bias: Float[Array, " hidden"]
    second_bias: Float[Array, " channels"]
    norms: tuple[eqx.nn.GroupNorm, eqx.nn.GroupNorm] | None
    time: bool = eqx.field(static=True)
    activation: AbstractActivation

    def __init__(
        self,
        shape: Shape,
        *,
        hidden: int | None = None,
        kernel_size: int = 3,
        activation: str = "relu",
        padding: str = "zero",
        time: bool = False,
        group_norm: bool = False,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `shape`: of the state: `(size,)` for dense maps, `(height, width, channels)`
            for convolutions.
        - `hidden`: inner units or channels; by default as many as the state has.
        - `kernel_size`: of the convolutions: odd.
        - `activation`: a name from `jnode.activations`.
        - `padding`: what stands outside a convolution's grid: "zero" or "circular".
        - `time`: whether $t$ enters as one more channel.
        - `group_norm`: whether groups of channels are normalised before each map.
        - `key`: of the initial weights.

        **Raises:** `ValueError` for any of these out of its range.
        """
        shape = check_shape(shape)
        hidden = shape[-1] if hidden is None else hidden
        self.activation = make_activation(activation, hidden)
        if group_norm and activation == "householder" and hidden != shape[-1]:
            raise ValueError(
                "hidden must equal the state's channels for householder with "
                f"group_norm, which acts on both: {shape[-1]}, not {hidden}."
            )
        if padding not in ("zero", "circular"):
            raise ValueError(f"padding must be 'zero' or 'circular', not {padding!r}.")
        keys = jr.split(key, 2)

        def linear(inputs, outputs, key):
            if len(shape) == 1:
                return Dense(inputs, outputs, key=key)
            kind = Conv if padding == "zero" else CircularConv
            grid = (shape[0], shape[1])
            return kind(inputs, outputs, grid=grid, kernel_size=kernel_size, key=key)

        self.first = linear(shape[-1] + time, hidden, keys[0])
        self.second = linear(hidden, shape[-1], keys[1])
        self.first_bias = jnp.zeros(hidden)
        self.second_bias = jnp.zeros(shape[-1])
        self.norms = (_norm(shape[-1]), _norm(hidden)) if group_norm else None
        self.time = time

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        sigma = self.activation
        x = y
        if self.norms is not None:
            x = sigma(channels_first(self.norms[0], x))
        if self.time:
            clock = jnp.broadcast_to(jnp.asarray(t, x.dtype), (*x.shape[:-1], 1))
            x = jnp.concatenate([x, clock], axis=-1)
        x = add_bias(self.first(x), self.first_bias)
        if self.norms is not None:
            x = channels_first(self.norms[1], x)
        return add_bias(self.second(sigma(x)), self.second_bias)

    @property
    def time_invariant(self) -> bool:
        return not self.time

    @property
    def takes_batches(self) -> bool:
        return self.norms is None

    def inner_form(self) -> InnerForm | None:
        if self.time or self.norms is not None:
            return None
        one = jnp.ones((), self.first_bias.dtype)
        return inner_form(
            self.first,
            self.second,
            self.activation,
            one,
            self.first_bias,
            self.second_bias,
        )


def _norm(channels: int) -> eqx.nn.GroupNorm:
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0)
    return eqx.nn.GroupNorm(min(groups, max(channels // 2, 1)), channels)


def channels_first(
    layer: Callable[[Array], Array], x: Float[Array, "*grid channels"]
) -> Float[Array, "..."]:
    """Applies a layer that wants channels first."""
    return jnp.moveaxis(layer(jnp.moveaxis(x, -1, 0)), 0, -1)
