"""The free convolution, quick inside loops on CPU as well."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.linear.base import AbstractLinear, check_positive


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
    """An unconstrained, zero-padded convolution of stride 1 that keeps the grid."""

    kernel: Float[Array, "size size in out"]

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
        check_positive(
            in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size
        )
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, not {kernel_size}.")
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.kernel = jr.normal(key, shape) / (kernel_size * in_channels**0.5)

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
        return jnp.asarray(jnp.inf)

    def bake(self) -> "Conv":
        return self
