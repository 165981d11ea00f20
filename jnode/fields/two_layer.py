"""An activation between two maps: orthogonal (`OrthoField`) or free (`FreeField`)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode._checks import check_shape
from jnode.activations import AbstractActivation, make_activation
from jnode.bounds import Bounds, times, up
from jnode.constraints import AbstractConstraint, Free, constrained, plain
from jnode.fields.base import (
    AbstractUncertifiedField,
    AbstractVectorField,
    Scale,
    Shape,
    TimeCoefficients,
    TwoLayer,
    add_bias,
    at_least_float32,
)
from jnode.linear import AbstractLinear


class OrthoField(AbstractVectorField):
    r"""A field of Lipschitz constant $L$ from two orthogonal maps.

    $f(t, y) = L\,W_2\,\sigma(W_1 y + b_1 + t c_1) + b_2 + t c_2$ with $W_1, W_2$
    orthogonal (after Ortho-ODE, arXiv 2305.09179). Time is optional and enters only the
    biases, so the constant holds at every time.
    """

    first: AbstractLinear
    second: AbstractLinear
    first_bias: Float[Array, " hidden"]
    second_bias: Float[Array, " channels"]
    time_coefficients: TimeCoefficients | None
    scale: Scale
    activation: AbstractActivation

    takes_batches = True

    def __init__(
        self,
        shape: Shape,
        *,
        lipschitz: float = 1.0,
        learnable: bool = False,
        hidden: int | None = None,
        constraint: str | AbstractConstraint = "cayley",
        kernel_size: int = 3,
        padding: str = "circular",
        activation: str = "relu",
        time: bool = False,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `shape`: the state's shape, `(size,)` for dense maps, `(height, width,
            channels)` for convolutions.
        - `lipschitz`: the constant $L > 0$; with `learnable`, the cap below which it
            is learned.
        - `hidden`: hidden units or channels; by default as many as the state has.
        - `constraint`, `kernel_size`, `padding`: of the maps, as for
            `jnode.constraints.constrained`.
        - `activation`: a name from `jnode.activations`.
        - `time`: whether the biases depend on $t$.
        - `key`: of the initial weights.

        **Raises:** `ValueError` for any of these out of its range.
        """
        shape = check_shape(shape)
        hidden = shape[-1] if hidden is None else hidden
        self.activation = make_activation(activation, hidden)
        keys = jr.split(key, 2)
        build = partial(
            constrained, constraint=constraint, kernel_size=kernel_size, padding=padding
        )
        self.first = build(shape, hidden, key=keys[0])
        self.second = build((*shape[:-1], hidden), shape[-1], key=keys[1])
        self.first_bias = jnp.zeros(hidden)
        self.second_bias = jnp.zeros(shape[-1])
        self.time_coefficients = (
            (jnp.zeros(hidden), jnp.zeros(shape[-1])) if time else None
        )
        self.scale = Scale(lipschitz, learnable=learnable)

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        return plain(self).as_two_layer()(t, y)

    def as_two_layer(self) -> TwoLayer:
        return TwoLayer(
            self.first,
            self.second,
            self.activation,
            self.scale(at_least_float32(self.first_bias)),
            self.first_bias,
            self.second_bias,
            self.time_coefficients,
        )

    def vjp_change(self, t, y, cotangent, distance, rounding) -> Float[Array, ""]:
        return self.as_two_layer().vjp_change(t, y, cotangent, distance, rounding)

    @property
    def time_invariant(self) -> bool:
        return self.time_coefficients is None

    def bounds(self) -> Bounds:
        norm = times(self.first.norm(), self.second.norm())
        norm = times(self.activation.lipschitz, norm)
        return Bounds(up(times(self.scale(norm.dtype), norm)))


class FreeField(AbstractUncertifiedField):
    r"""Two free maps around an activation (ODENet: Chen et al., NeurIPS 2018).

    $f(t, y) = W_2\,\sigma(W_1 [y, t] + b_1) + b_2$, where time and group normalisation
    are optional. It is unconstrained, and nothing is certified.
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

        - `time`: whether $t$ enters as one more channel.
        - `group_norm`: whether groups of channels are normalised before each map.
        - all others: as of `OrthoField`.

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
        build = partial(
            constrained, constraint=Free(), kernel_size=kernel_size, padding=padding
        )
        keys, grid = jr.split(key, 2), shape[:-1]
        self.first = build((*grid, shape[-1] + time), hidden, key=keys[0])
        self.second = build((*grid, hidden), shape[-1], key=keys[1])
        self.first_bias = jnp.zeros(hidden)
        self.second_bias = jnp.zeros(shape[-1])
        self.norms = (_norm(shape[-1]), _norm(hidden)) if group_norm else None
        self.time = time

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        field, sigma, x = plain(self), self.activation, y
        if self.norms is not None:
            x = sigma(channels_first(self.norms[0], x))
        if self.time:
            clock = jnp.broadcast_to(jnp.asarray(t, x.dtype), (*x.shape[:-1], 1))
            x = jnp.concatenate([x, clock], axis=-1)
        x = add_bias(field.first(x), self.first_bias)
        if self.norms is not None:
            x = channels_first(self.norms[1], x)
        return add_bias(field.second(sigma(x)), self.second_bias)

    @property
    def time_invariant(self) -> bool:
        return not self.time

    @property
    def takes_batches(self) -> bool:
        return self.norms is None

    def as_two_layer(self) -> TwoLayer | None:
        if self.time or self.norms is not None:
            return None
        one = jnp.ones((), self.first_bias.dtype)
        maps = (self.first, self.second)
        return TwoLayer(*maps, self.activation, one, self.first_bias, self.second_bias)


def _norm(channels: int) -> eqx.nn.GroupNorm:
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0)
    return eqx.nn.GroupNorm(min(groups, max(channels // 2, 1)), channels)


def channels_first(
    layer: Callable[[Array], Array], x: Float[Array, "*grid channels"]
) -> Float[Array, "..."]:
    """Applies a layer that expects channels first."""
    return jnp.moveaxis(layer(jnp.moveaxis(x, -1, 0)), 0, -1)
