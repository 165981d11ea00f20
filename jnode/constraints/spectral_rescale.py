"""Division by a certified bound on the norm."""

import jax

from jnode.constraints.base import (
    AbstractConstraint,
    Grid,
    Kernel,
    Matrix,
    Resolved,
    convolution,
    scaled_slack,
)
from jnode.linear.gram import gram_iteration, real_column
from jnode.linear.operators import Dense
from jnode.linear.spectral_conv import kernel_norm


class SpectralRescale(AbstractConstraint):
    r"""$W = V / \beta(V)$ with $\beta(V) \ge \|V\|_2$ by Gram iteration.

    The largest singular value is nearly 1, the others are free (Delattre et al., ICML
    2023). It costs 6 products of matrices of the smaller size; for a convolution, of [2
    channels, 2 channels] matrices for each frequency, on a grid enlarged by the
    kernel's radius for zero padding.
    """

    def matrix(self, v: Matrix) -> Resolved:
        bound = gram_iteration(real_column(v))[0]
        return Dense(v / bound), scaled_slack(min(v.shape), v.dtype)

    def kernel(self, k: Kernel, grid: Grid, padding: str) -> Resolved:
        # An error of a kernel's entry acts on every frequency alike.
        size = k.shape[0] * min(k.shape[2:]) ** 0.5
        one = jax.lax.stop_gradient(scaled_slack(int(size**2) + 1, k.dtype))
        return convolution(k / kernel_norm(k, grid, padding), one, grid, padding)
