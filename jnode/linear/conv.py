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

    - `kernel`: its taps, of odd size.
    - `grid`: height and width of its images, or `None`. With a grid its norm can be
        bounded, and images of another grid raise an error.
    - `spectral`: the same map by frequencies, or `None`. Where it is given, it is used
        on CPU (see `zero_padded`), and the kernel elsewhere.

    **Raises:** `ValueError` for a kernel of even size.
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
            # The bound covers both forms: by frequencies on CPU, by the kernel
            # elsewhere.
            bound = jnp.maximum(bound, self.spectral.norm())
        period = circular_period(len(kernel), self.grid, "zero")
        return bound * transform_slack(period, kernel.dtype)

    def times(self, inner: AbstractLinear) -> None:
        """`None`: the product of two zero-padded convolutions is not one."""


def zero_padded(
    kernel: Float[Array, "size size in out"], grid: tuple[int, int]
) -> Conv:
    """A `Conv` on this grid, with its form by frequencies if that is faster on CPU."""
    if not spectral_is_cheaper(kernel.shape, grid):
        return Conv(kernel, grid)
    margin = kernel.shape[0] // 2
    period = circular_period(kernel.shape[0], grid, "zero")
    column = kernel_spectrum(kernel.swapaxes(-1, -2), period)
    return Conv(kernel, grid, SpectralConv.from_column(column, grid, margin))
