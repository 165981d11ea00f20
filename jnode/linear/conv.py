"""The zero-padded convolution, quick inside loops on CPU as well."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.linear.base import (
    AbstractPlain,
    check_grid,
    check_kernel_size,
    check_positive,
)
from jnode.linear.gram import gram_iteration
from jnode.linear.spectral_conv import (
    SpectralConv,
    kernel_spectrum,
    spectrum_slack,
    transform_slack,
)


# XLA's CPU backend computes the weight gradient of a convolution inside a loop with a
# naive kernel, some 20 times slower than it should be; a solver is such a loop. As
# matrix products, over patches or over frequencies, forward and gradient are quick
# there. Elsewhere the native convolution is best.
@eqx.filter_checkpoint  # patches are as many times the input as the kernel has taps
def _by_patches(x, kernel):
    size, _, channels, out = kernel.shape
    height, width = x.shape[:2]
    r = size // 2
    x = jnp.pad(x, ((r, r), (r, r), *[(0, 0)] * (x.ndim - 2)))
    shifts = [
        x[i : i + height, j : j + width] for i in range(size) for j in range(size)
    ]
    weights = kernel.reshape(size * size * channels, out)
    patches = jnp.concatenate(shifts, axis=-1)
    return jnp.matmul(patches, weights, precision="highest")


def _native(x, kernel):
    batch = x.shape[2:-1]
    x = jnp.moveaxis(x.reshape(*x.shape[:2], -1, x.shape[-1]), 2, 0)
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    y = jnp.moveaxis(y, 0, 2)
    return y.reshape(*y.shape[:2], *batch, y.shape[-1])


def _spectral_pays(kernel_shape, grid) -> bool:
    """Whether the form on each frequency takes fewer multiplications than patches."""
    size, _, channels, out = kernel_shape
    positions = grid[0] * grid[1]
    rows = (grid[0] + size // 2) * (grid[1] + size // 2)
    spectral = positions * rows * (channels + out) + 2 * rows * channels * out
    return spectral < size * size * positions * channels * out


class Conv(AbstractPlain):
    """A zero-padded convolution of stride 1 that keeps the grid.

    Unconstrained, or one that another map was baked to.
    """

    kernel: Float[Array, "size size in out"]
    spectral: SpectralConv | None
    grid: tuple[int, int] | None = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        grid: tuple[int, int] | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_channels`, `out_channels`: the numbers of channels.
        - `kernel_size`: odd.
        - `grid`: height and width of the images it works on, where they are known:
            its norm can then be bounded, and baked for a small grid it is quicker on
            CPU. Images of another grid are refused.
        - `key`: of the initial weights (He 2015).

        **Raises:** `ValueError` for an even kernel.
        """
        check_positive(in_channels=in_channels, out_channels=out_channels)
        check_kernel_size(kernel_size)
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.kernel = jr.normal(key, shape) / (kernel_size * in_channels**0.5)
        self.spectral = None
        self.grid = grid

    def __call__(
        self, x: Float[Array, "height width *batch in"]
    ) -> Float[Array, "height width *batch out"]:
        return self._apply(x, self.kernel, transposed=False)

    def transpose(
        self, x: Float[Array, "height width *batch out"]
    ) -> Float[Array, "height width *batch in"]:
        # Mirrored in space, its channels exchanged.
        flipped = self.kernel[::-1, ::-1].swapaxes(-1, -2)
        return self._apply(x, flipped, transposed=True)

    def _apply(self, x, kernel, *, transposed):
        check_grid(x.shape, self.grid)

        def on_cpu(x, kernel, spectral):
            if spectral is None:
                return _by_patches(x, kernel)
            return spectral.transpose(x) if transposed else spectral(x)

        def elsewhere(x, kernel, spectral):
            return _native(x, kernel)

        return jax.lax.platform_dependent(
            x, kernel, self.spectral, cpu=on_cpu, default=elsewhere
        )

    def norm(self) -> Float[Array, ""]:
        if self.grid is None:
            return jnp.asarray(jnp.inf)
        kernel = self.kernel.swapaxes(-1, -2)
        bound = jnp.max(gram_iteration(self._spectrum(), 10)) + spectrum_slack(kernel)
        if self.spectral is not None:
            # On CPU its weights on each frequency act, elsewhere the kernel does.
            bound = jnp.maximum(bound, self.spectral.norm())
        return bound * transform_slack(self._period(), kernel.dtype)

    def _period(self):
        """The grid enlarged by the kernel's radius: the zero-padded convolution is a
        part of the circular one there, so no norm exceeds that one's."""
        assert self.grid is not None
        margin = self.kernel.shape[0] // 2
        return (self.grid[0] + margin, self.grid[1] + margin)

    def _spectrum(self):
        return kernel_spectrum(self.kernel.swapaxes(-1, -2), self._period())

    def bake(self) -> "Conv":
        if self.grid is None or not _spectral_pays(self.kernel.shape, self.grid):
            return self
        margin = self.kernel.shape[0] // 2
        spectral = SpectralConv(self._spectrum(), self.grid, margin)
        return eqx.tree_at(
            lambda c: c.spectral, self, spectral, is_leaf=lambda x: x is None
        )


def conv_of(kernel: Float[Array, "size size out in"], grid: tuple[int, int]) -> Conv:
    """A `Conv` of this kernel, baked."""
    conv = object.__new__(Conv)
    object.__setattr__(conv, "kernel", kernel.swapaxes(-1, -2))
    object.__setattr__(conv, "spectral", None)
    object.__setattr__(conv, "grid", grid)
    return conv.bake()
