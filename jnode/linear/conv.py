"""The zero-padded convolution."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.linear.operators import AbstractLinear, AbstractPlain
from jnode.linear.products import spectral_is_cheaper, zero_padded_product
from jnode.linear.spectral_conv import (
    SpectralConv,
    check_grid,
    circular_period,
    kernel_norm,
    kernel_spectrum,
    transform_slack,
)


class Conv(AbstractPlain):
    """A zero-padded convolution of stride 1 that keeps the grid.

    - `kernel`: its taps, the size odd.
    - `grid`: height and width of the images it works on, where they are known: its norm
        can then be bounded, and images of another grid are refused.
    - `spectral`: the same map by frequencies, which acts on CPU where it is given
        (see `zero_padded`); elsewhere the kernel acts.
    """

    kernel: Float[Array, "size size in out"]
    grid: tuple[int, int] | None = eqx.field(static=True, default=None)
    spectral: SpectralConv | None = None

    def __check_init__(self):
        if self.kernel.shape[0] % 2 == 0:
            raise ValueError(
                f"kernel must have an odd size, not {self.kernel.shape[0]}."
            )

    def __call__(
        self, x: Float[Array, "height width *batch in"]
    ) -> Float[Array, "height width *batch out"]:
        check_grid(x.shape, self.grid)
        return zero_padded_product(self.kernel, self.spectral, x)

    @property
    def T(self) -> "Conv":
        # Mirrored in space, its channels exchanged.
        flipped = self.kernel[::-1, ::-1].swapaxes(-1, -2)
        spectral = None if self.spectral is None else self.spectral.T
        return Conv(flipped, self.grid, spectral)

    def norm(self) -> Float[Array, ""]:
        if self.grid is None:
            return jnp.asarray(jnp.inf)
        kernel = self.kernel.swapaxes(-1, -2)
        bound = kernel_norm(kernel, self.grid, "zero", 10)
        if self.spectral is not None:
            # On CPU its weights on each frequency act, elsewhere the kernel does.
            bound = jnp.maximum(bound, self.spectral.norm())
        period = circular_period(len(kernel), self.grid, "zero")
        return bound * transform_slack(period, kernel.dtype)

    def times(self, inner: AbstractLinear) -> None:
        """Two zero-padded convolutions make no convolution."""


def zero_padded(
    kernel: Float[Array, "size size in out"], grid: tuple[int, int]
) -> Conv:
    """A `Conv` on this grid, by frequencies too where these are quicker on CPU."""
    if not spectral_is_cheaper(kernel.shape, grid):
        return Conv(kernel, grid)
    margin = kernel.shape[0] // 2
    period = circular_period(kernel.shape[0], grid, "zero")
    column = kernel_spectrum(kernel.swapaxes(-1, -2), period)
    return Conv(kernel, grid, SpectralConv.from_column(column, grid, margin))
