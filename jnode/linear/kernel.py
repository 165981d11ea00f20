"""What maps that rescale a free matrix or kernel have in common."""

import equinox as eqx
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.bounds import unit_roundoff
from jnode.linear.base import (
    AbstractLinear,
    AbstractReparametrized,
    check_choice,
    check_kernel_size,
    check_positive,
)
from jnode.linear.conv import conv_of
from jnode.linear.spectral_conv import (
    SpectralConv,
    kernel_spectrum,
    spectrum_slack,
    transform_slack,
)

PADDINGS = ("circular", "zero")


class AbstractWeightDense(AbstractReparametrized):
    """A dense map made from a free matrix."""

    weight: Float[Array, "out in"]

    def __init__(self, in_size: int, out_size: int, *, key: PRNGKeyArray):
        """**Arguments:** the sizes, and the key of the initial weights."""
        check_positive(in_size=in_size, out_size=out_size)
        self.weight = jr.normal(key, (out_size, in_size)) / in_size**0.5


class AbstractKernelConv(AbstractReparametrized):
    """A convolution of stride 1, circular or zero-padded, made from a free kernel."""

    kernel: Float[Array, "size size out in"]
    grid: tuple[int, int] = eqx.field(static=True)
    padding: str = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        grid: tuple[int, int],
        kernel_size: int = 3,
        padding: str = "circular",
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_channels`, `out_channels`: the numbers of channels.
        - `grid`: height and width of the images it works on.
        - `kernel_size`: odd.
        - `padding`: what stands outside the grid: "circular" (its other side) or
            "zero".
        - `key`: of the initial weights.

        **Raises:** `ValueError` for any of these out of its range.
        """
        height, width = grid
        check_positive(
            in_channels=in_channels,
            out_channels=out_channels,
            height=height,
            width=width,
        )
        check_kernel_size(kernel_size)
        check_choice("padding", padding, PADDINGS)
        shape = (kernel_size, kernel_size, out_channels, in_channels)
        self.kernel = jr.normal(key, shape) / (kernel_size * in_channels**0.5)
        self.grid = (height, width)
        self.padding = padding

    def spectrum(self) -> Float[Array, "frequencies twice_out in"]:
        r"""The matrices by which the kernel acts on each frequency of a circular grid.

        For zero padding the grid is enlarged by the kernel's radius: the zero-padded
        convolution is a part of the circular one there, so no norm exceeds that one's.
        """
        extra = 0 if self.padding == "circular" else self.kernel.shape[0] // 2
        height, width = self.grid
        return kernel_spectrum(self.kernel, (height + extra, width + extra))


def resolve_kernel(
    kernel: Float[Array, "size size out in"],
    bound: Float[Array, ""],
    grid: tuple[int, int],
    padding: str,
) -> tuple[AbstractLinear, Float[Array, ""]]:
    """The plain map of a kernel whose exact norm is at most `bound`, and its bound."""
    margin = kernel.shape[0] // 2 if padding == "zero" else 0
    period = (grid[0] + margin, grid[1] + margin)
    # The spectrum is rounded once more while it is computed.
    bound = (bound + spectrum_slack(kernel)) * transform_slack(period, kernel.dtype)
    if padding == "zero":
        return conv_of(kernel, grid), bound
    return SpectralConv(kernel_spectrum(kernel, grid), grid), bound


def scaled_slack(size: int, dtype) -> float:
    r"""$1 + \varepsilon$ for a matrix of norm 1 whose entries were each rounded.

    Entries that err by $8u$ relative to themselves move the norm by at most
    $8u\|W\|_F \le 8u\sqrt{n}$.
    """
    return 1 + 8 * unit_roundoff(dtype) * (1 + size**0.5)
