"""The interface of constraints, and helpers for those that act on a kernel's taps."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode._checks import Fixed
from jnode.bounds import unit_roundoff
from jnode.linear.conv import zero_padded
from jnode.linear.gram import spectral_norm
from jnode.linear.operators import AbstractLinear, Dense
from jnode.linear.spectral_conv import (
    SpectralConv,
    circular_period,
    kernel_norm,
    kernel_spectrum,
    spectrum_slack,
    transform_slack,
)

Matrix = Float[Array, "out in"]
Kernel = Float[Array, "size size out in"]
Grid = tuple[int, int]
Kernels = Float[Array, "stack size size out in"]
Resolved = tuple[AbstractLinear, Float[Array, ""]]
ResolvedStack = tuple[AbstractLinear, Float[Array, " stack"]]


class AbstractConstraint(Fixed):
    r"""Turns a free weight into a linear operator of known norm.

    The methods compute the operator and a certified upper bound on its norm in one
    pass. The bound allows for the rounding of the operator's arrays: it holds for the
    operator as it was computed. A constraint may hold arrays of its own, which are
    then trained beside the weight.
    """

    _jnode_fixed = ("matrix", "kernel")

    @abc.abstractmethod
    def matrix(self, v: Matrix) -> Resolved:
        """The operator of a free matrix, and its bound."""

    @abc.abstractmethod
    def kernel(self, k: Kernel, grid: Grid, padding: str) -> Resolved:
        """The operator of a convolution's free kernel, and its bound.

        **Arguments:** the kernel, of odd size; height and width of the images; and the
        padding, "circular" or "zero".

        **Raises:** `ValueError` for a padding that the constraint does not support.
        """

    def kernels(self, k: Kernels, grid: Grid, padding: str) -> ResolvedStack:
        """The operators of a stack of kernels, their arrays stacked, and their bounds.

        `self` is a stack as well, if it holds arrays. By default each kernel is
        computed as if by itself. A constraint may do better.
        """
        return eqx.filter_vmap(lambda c, k: c.kernel(k, grid, padding))(self, k)


class Free(AbstractConstraint):
    """No constraint: the weight itself, and its norm by Gram iteration."""

    def matrix(self, v: Matrix) -> Resolved:
        return Dense(v), spectral_norm(v)

    def kernel(self, k: Kernel, grid: Grid, padding: str) -> Resolved:
        return convolution(k, kernel_norm(k, grid, padding), grid, padding)


def convolution(
    kernel: Kernel, bound: Float[Array, ""], grid: Grid, padding: str
) -> Resolved:
    """The operator of a kernel of exact norm at most `bound`, and a bound on its
    own."""
    # Computing the spectrum rounds once more.
    period = circular_period(kernel.shape[0], grid, padding)
    bound = (bound + spectrum_slack(kernel)) * transform_slack(period, kernel.dtype)
    if padding == "zero":
        return zero_padded(kernel.swapaxes(-1, -2), grid), bound
    return SpectralConv.from_column(kernel_spectrum(kernel, grid), grid), bound


def scaled_slack(size: int, dtype) -> Float[Array, ""]:
    r"""$1 + \varepsilon$ for a matrix of norm 1 whose entries were each rounded.

    Entries that err by $8u$ relative to themselves move the norm by at most
    $8u\|W\|_F \le 8u\sqrt{n}$.
    """
    return jnp.asarray(1 + 8 * unit_roundoff(dtype) * (1 + size**0.5), dtype)
