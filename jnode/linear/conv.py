"""Zero-padded convolutions, in the order of axes that is fast in loops on CPU.

On CPU, XLA computes a convolution efficiently if its images are ordered as batch,
height, width, channels, and its kernel as height, width, in, out. It reorders others
first, but not inside of loops, where they run tens of times slower; and solvers,
attacks and trainings are loops. JAX's derivatives of an ordered convolution are not
ordered. Here those of reverse mode are, and those of forward mode in `forward_mode`.
"""

from contextlib import AbstractContextManager
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.linear.operators import AbstractLinear, AbstractPlain
from jnode.linear.products import state_matmul, state_precision
from jnode.linear.spectral_conv import (
    SpectralConv,
    check_grid,
    circular_period,
    kernel_norm,
    kernel_spectrum,
    transform_slack,
)

_forward = jax.make_user_context(False)


def forward_mode() -> AbstractContextManager[None]:
    """In functions that are traced and differentiated inside this context, derivatives
    of `convolve` are ordered in forward mode, and not in reverse mode."""
    return _forward(True)


def convolve(
    x: Float[Array, "batch height width in"],
    kernel: Float[Array, "rows columns in out"],
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[tuple[int, int], ...] = ((0, 0), (0, 0)),
) -> Float[Array, "batch new_height new_width out"]:
    """A convolution as networks have it: a correlation, of zero-padded images.

    **Arguments:** images, the kernel's taps, the strides, and how many zeros are put
    before and after each axis.

    On CPU the kernel's gradient is that of several images at a time, so under `jax.jit`
    a batch should not be spread over devices outside of `jax.shard_map`, and it is
    slower if images are mapped one by one by `jax.vmap`.
    """
    window = {"stride": stride, "padding": padding}
    on_cpu, elsewhere = (partial(form, **window) for form in (_ordered, _general))
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)


def _general(x, kernel, stride, padding, order=("NHWC", "HWIO", "NHWC")):
    return jax.lax.conv_general_dilated(
        x, kernel, stride, padding, None, None, order, precision=state_precision()
    )


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _ordered(x, kernel, stride, padding):
    return _general(x, kernel, stride, padding)


@_ordered.defjvp
def _ordered_jvp(stride, padding, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    if _forward.value:
        by_x = _ordered(dx, kernel, stride, padding)
        by_kernel = _ordered(x, dkernel, stride, padding)
    else:
        # Of a transpose, in and out change places in the kernel ...
        swapped = kernel.swapaxes(2, 3)
        by_x = _general(dx, swapped, stride, padding, ("NHWC", "HWOI", "NHWC"))
        # ... or batch and channels in the images, of which the others are the kernel;
        # several images at a time, whose patches stay in the cache.
        turned, dkernel = x.transpose(3, 1, 2, 0), dkernel.transpose(2, 0, 1, 3)
        size, order = max(16, len(x) // 16), ("CHWN", "IHWO", "HWNC")
        few = (turned[..., i : i + size] for i in range(0, len(x) or 1, size))
        parts = [_general(some, dkernel, stride, padding, order) for some in few]
        by_kernel = jnp.concatenate(parts, axis=2).transpose(2, 0, 1, 3)
    return _ordered(x, kernel, stride, padding), by_x + by_kernel


class Conv(AbstractPlain):
    """A zero-padded convolution of stride 1 that keeps the grid.

    - `kernel`: its taps, of odd size.
    - `grid`: height and width of its images, or `None`. With a grid its norm can be
        bounded, and images of another grid raise an error.
    - `spectral`: the same map by frequencies, or `None`. Where it is given, it is used
        on CPU (see `zero_padded`), and the kernel elsewhere.

    **Raises:** `ValueError` for a kernel that is not square, or of even size.
    """

    kernel: Float[Array, "size size in out"]
    grid: tuple[int, int] | None = eqx.field(static=True, default=None)
    spectral: SpectralConv | None = None

    def __check_init__(self):
        rows, columns = self.kernel.shape[:2]
        if rows != columns or rows % 2 == 0:
            raise ValueError(
                f"kernel must be square, of odd size, not {rows} x {columns}."
            )

    def __call__(
        self, x: Float[Array, "height width *batch in"]
    ) -> Float[Array, "height width *batch out"]:
        check_grid(x.shape, self.grid)
        by_kernel, other = partial(_by_kernel, self.kernel), self.spectral
        if other is None:
            return by_kernel(x)
        return jax.lax.platform_dependent(x, cpu=lambda x: other(x), default=by_kernel)

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


def _by_kernel(kernel, x):
    if len(kernel) == 1:
        # A matrix product, all of whose derivatives are fast too.
        return state_matmul(x, kernel[0, 0])
    r, images = len(kernel) // 2, x.reshape(*x.shape[:2], -1, x.shape[-1])
    y = convolve(jnp.moveaxis(images, 2, 0), kernel, padding=((r, r), (r, r)))
    return jnp.moveaxis(y, 0, 2).reshape(*x.shape[:-1], y.shape[-1])


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


def spectral_is_cheaper(kernel_shape: tuple[int, ...], grid: tuple[int, int]) -> bool:
    """Whether a zero-padded convolution is faster by frequencies: with fewer than 0.6
    times the multiplications, as measured on CPU."""
    size, _, channels, out = kernel_shape
    positions = grid[0] * grid[1]
    rows = (grid[0] + size // 2) * (grid[1] + size // 2)
    spectral = positions * rows * (channels + out) + 2 * rows * channels * out
    return spectral < 0.6 * size * size * positions * channels * out
