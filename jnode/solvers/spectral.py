r"""Fixed steps of circular convolutions, taken in the coordinates of their frequencies.

A field $V\sigma(Wy + b)$ of circular convolutions transforms its state to frequencies
and back in every evaluation. Runge-Kutta steps commute with the transform, which is an
isometry: taken on the transformed state, the same steps give the same $y$, up to
rounding, and only the hidden units are transformed.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.activations import AbstractActivation
from jnode.fields.base import TwoLayer, add_bias
from jnode.linear import SpectralConv
from jnode.linear.products import from_frequencies, state_matmul, to_frequencies
from jnode.linear.spectral_conv import check_grid, embedded, transform


class SpectralState(eqx.Module):
    """How states of one shape are written as `[frequencies, batch, parts * channels]`.

    Real parts come before imaginary ones in the last axis.
    """

    shape: tuple[int, ...] = eqx.field(static=True)

    def enter(self, y: Float[Array, "*state"]) -> Float[Array, "frequencies batch two"]:
        """The state's frequencies."""
        f = jnp.asarray(transform(*self.shape[:2]), y.dtype)
        return to_frequencies(f, y.reshape(f.shape[2], -1, self.shape[-1]))

    def leave(self, z: Float[Array, "frequencies batch two"]) -> Float[Array, "*state"]:
        """The state of these frequencies."""
        f = jnp.asarray(transform(*self.shape[:2]), z.dtype)
        return from_frequencies(f, z).reshape(self.shape)


class SpectralField(eqx.Module):
    """A two-layer field of circular convolutions, on the frequencies of its states."""

    enter: Float[Array, "frequencies two_channels two_hidden"]
    leave: Float[Array, "frequencies two_hidden two_channels"]
    bias: Float[Array, " hidden"]
    scale: Float[Array, ""]
    activation: AbstractActivation
    grid: tuple[int, int] = eqx.field(static=True)

    def __call__(
        self, t: Any, z: Float[Array, "frequencies batch two"], args: Any = None
    ) -> Float[Array, "frequencies batch two"]:
        f = jnp.asarray(transform(*self.grid), z.dtype)
        hidden = from_frequencies(f, state_matmul(z, self.enter))
        active = self.activation(add_bias(hidden, self.bias))
        speed = state_matmul(to_frequencies(f, active), self.leave)
        return self.scale.astype(z.dtype) * speed


def spectral_field(
    form: TwoLayer | None, y: Float[Array, "*state"]
) -> SpectralField | None:
    """A field of this form on the frequencies of states like `y`; `None` for a form
    that is not made of circular convolutions.

    **Raises:** `ValueError` for a state of another grid.
    """
    if form is None or form.drift is not None or form.clocks is not None:
        return None
    enter, leave = form.enter, form.leave
    if not isinstance(enter, SpectralConv) or not isinstance(leave, SpectralConv):
        return None
    if enter.margin or leave.margin or enter.grid != leave.grid:
        return None
    check_grid(y.shape, enter.grid)
    if not enter.real.dtype == leave.real.dtype == y.dtype:
        return None
    weights = (embedded(enter), embedded(leave), form.bias, form.scale)
    return SpectralField(*weights, form.activation, enter.grid)
