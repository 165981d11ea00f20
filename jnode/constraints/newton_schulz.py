r"""Newton-Schulz orthogonalisation: the nearest isometry, by matrix products alone.

After division by a certified bound on the norm all singular values lie in [0, 1], where
$x \mapsto x(3 - x^2)/2$ keeps them and drives them to 1 (Björck & Bowie 1971; Kovarik
1970). The remaining error is measured, so the bound is certified.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.constraints.base import AbstractConstraint, Grid, Kernel, Matrix, Resolved
from jnode.linear.gram import adjoint, embed, gram_iteration, norm_bound, real_column
from jnode.linear.operators import Dense
from jnode.linear.products import matmul
from jnode.linear.spectral_conv import (
    SpectralConv,
    check_circular,
    kernel_spectrum,
    transform_slack,
)

STEPS = 14


class NewtonSchulz(AbstractConstraint):
    """The nearest isometry of a matrix, or of a circular convolution.

    It costs some 28 products of matrices of the smaller size; for a convolution, of [2
    channels, 2 channels] matrices for each frequency. Singular values that start below
    1 % of the largest one do not reach 1; `jnode.linear.gram.isometry_residual`
    measures this.
    """

    def matrix(self, v: Matrix) -> Resolved:
        column = orthogonalize(real_column(v))
        # All singular values are nearly 1: a gradient of the bound would be noise.
        bound = jax.lax.stop_gradient(norm_bound(column))
        return Dense(column[0, : len(v)]), bound

    def kernel(self, k: Kernel, grid: Grid, padding: str) -> Resolved:
        check_circular(padding)  # the isometry's kernel is as large as the grid
        column = orthogonalize(kernel_spectrum(k, grid))
        bound = jax.lax.stop_gradient(norm_bound(column))
        slack = transform_slack(grid, column.dtype)
        return SpectralConv.from_column(column, grid), bound * slack


@jax.jit
def orthogonalize(
    column: Float[Array, "batch twice_rows columns"],
) -> Float[Array, "batch twice_rows columns"]:
    """Nearly the polar factor of each matrix; column form in, column form out."""
    rows, columns = column.shape[-2] // 2, column.shape[-1]
    x = adjoint(column) if rows < columns else column
    # The least divisor keeps derivatives finite at a matrix of zeros.
    x = x / jnp.maximum(gram_iteration(x), 1e-12)[:, None, None]

    def body(x, _):
        gram = matmul(embed(adjoint(x)), x)
        return 1.5 * x - 0.5 * matmul(embed(x), gram), None

    x, _ = jax.lax.scan(body, x, length=STEPS)
    return adjoint(x) if rows < columns else x
