"""The free convolution, quick inside loops on CPU as well."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.linear.base import AbstractLinear, check_kernel_size, check_positive


def _patches(x, size: int):
    """[height, width, taps * channels]: each position's neighbourhood."""
    height, width, _ = x.shape
    r = size // 2
    x = jnp.pad(x, ((r, r), (r, r), (0, 0)))
    shifts = [
        x[i : i + height, j : j + width] for i in range(size) for j in range(size)
    ]
    return jnp.concatenate(shifts, axis=-1)


# XLA's CPU backend computes the weight gradient of a convolution inside a loop with a
# naive kernel, some 20 times slower than it should be; a solver is such a loop. As one
# matrix product over patches, forward and gradient are BLAS calls. Elsewhere the native
# convolution is best. Rematerialised, because patches are 9 times the input.
@eqx.filter_checkpoint
def _convolve(x, kernel):
    size, _, channels, out = kernel.shape

    def matmul(x, kernel):
        weights = kernel.reshape(size * size * channels, out)
        return jnp.matmul(_patches(x, size), weights, precision="highest")

    def native(x, kernel):
        return jax.lax.conv_general_dilated(
            x[None],
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )[0]

    return jax.lax.platform_dependent(x, kernel, cpu=matmul, default=native)


class Conv(AbstractLinear):
    """A zero-padded convolution of stride 1 that keeps the grid.

    Unconstrained, or one that another map was baked to.
    """

    kernel: Float[Array, "size size in out"]
    bound: Float[Array, ""] | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_channels`, `out_channels`: the numbers of channels.
        - `kernel_size`: odd.
        - `key`: of the initial weights (He 2015).

        **Raises:** `ValueError` for an even kernel.
        """
        check_positive(in_channels=in_channels, out_channels=out_channels)
        check_kernel_size(kernel_size)
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.kernel = jr.normal(key, shape) / (kernel_size * in_channels**0.5)
        self.bound = None

    def __call__(
        self, x: Float[Array, "height width in"]
    ) -> Float[Array, "height width out"]:
        return _convolve(x, self.kernel)

    def transpose(
        self, x: Float[Array, "height width out"]
    ) -> Float[Array, "height width in"]:
        # Mirrored in space, its channels exchanged.
        flipped = self.kernel[::-1, ::-1].swapaxes(-1, -2)
        return _convolve(x, flipped)

    def norm(self) -> Float[Array, ""]:
        return jnp.asarray(jnp.inf) if self.bound is None else self.bound

    def bake(self) -> "Conv":
        return self


def baked_conv(
    kernel: Float[Array, "size size out in"], bound: Float[Array, ""]
) -> Conv:
    """A `Conv` of this kernel, whose norm is known to be at most `bound`."""
    conv = object.__new__(Conv)
    object.__setattr__(conv, "kernel", kernel.swapaxes(-1, -2))
    object.__setattr__(conv, "bound", bound)
    return conv
