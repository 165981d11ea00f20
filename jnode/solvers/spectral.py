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
    """States of one shape, transformed to `[frequencies, batch, parts * channels]`.

    Real parts come before imaginary ones in the last axis.
    """

    shape: tuple[int, ...] = eqx.field(static=True)

    def encode(
        self, y: Float[Array, "*state"]
    ) -> Float[Array, "frequencies batch two"]:
        """The Fourier transform of the state."""
        f = jnp.asarray(transform(*self.shape[:2]), y.dtype)
        return to_frequencies(f, y.reshape(f.shape[2], -1, self.shape[-1]))

    def decode(
        self, z: Float[Array, "frequencies batch two"]
    ) -> Float[Array, "*state"]:
        """The inverse of `encode`."""
        f = jnp.asarray(transform(*self.shape[:2]), z.dtype)
        return from_frequencies(f, z).reshape(self.shape)


class SpectralField(eqx.Module):
    """A two-layer field of circular convolutions, on the frequencies of its states."""

    w_in: Float[Array, "frequencies two_channels two_hidden"]
    w_out: Float[Array, "frequencies two_hidden two_channels"]
    bias: Float[Array, " hidden"]
    scale: Float[Array, ""]
    activation: AbstractActivation
    grid: tuple[int, int] = eqx.field(static=True)

    def __call__(
        self, t: Any, z: Float[Array, "frequencies batch two"], args: Any = None
    ) -> Float[Array, "frequencies batch two"]:
        f = jnp.asarray(transform(*self.grid), z.dtype)
        hidden = from_frequencies(f, state_matmul(z, self.w_in))
        active = self.activation(add_bias(hidden, self.bias))
        speed = state_matmul(to_frequencies(f, active), self.w_out)
        return self.scale.astype(z.dtype) * speed


def spectral_field(
    form: TwoLayer | None, y: Float[Array, "*state"]
) -> SpectralField | None:
    """The field on the frequencies of states like `y`, or `None` if it is not made of
    circular convolutions.

    **Raises:** `ValueError` for a state of another grid.
    """
    if form is None or form.drift is not None or form.time_coefficients is not None:
        return None
    w_in, w_out = form.w_in, form.w_out
    if not isinstance(w_in, SpectralConv) or not isinstance(w_out, SpectralConv):
        return None
    if w_in.margin or w_out.margin or w_in.grid != w_out.grid:
        return None
    check_grid(y.shape, w_in.grid)
    if not w_in.real.dtype == w_out.real.dtype == y.dtype:
        return None
    weights = (embedded(w_in), embedded(w_out), form.bias, form.scale)
    return SpectralField(*weights, form.activation, w_in.grid)
