r"""Newton-Schulz orthogonalisation: the nearest isometry, by matrix products alone.

After division by a certified bound on the norm all singular values lie in [0, 1], where
$x \mapsto x(3 - x^2)/2$ keeps them and drives them to 1 (Björck & Bowie 1971; Kovarik
1970). What remains is measured: the residual is certified, not hoped for.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.linear.base import AbstractLinear
from jnode.linear.cayley import adjoint, embed
from jnode.linear.dense import Dense, dense_of
from jnode.linear.gram import (
    gram_iteration,
    isometry_residual,
    norm_bound,
    real_column,
)
from jnode.linear.kernel import AbstractKernelConv, AbstractWeightDense
from jnode.linear.spectral_conv import SpectralConv, transform_slack

STEPS = 14


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
        gram = jnp.matmul(embed(adjoint(x)), x, precision="highest")
        return 1.5 * x - 0.5 * jnp.matmul(embed(x), gram, precision="highest"), None

    x, _ = jax.lax.scan(body, x, length=STEPS)
    return adjoint(x) if rows < columns else x


class NewtonSchulzDense(AbstractWeightDense):
    """The nearest isometry of a free matrix, up to a certified residual.

    Costs some 28 products of matrices of the smaller size when baked. Singular values
    that start below 1 % of the largest one do not get to 1: `residual` tells.
    """

    def resolve(self) -> tuple[Dense, Float[Array, ""]]:
        column = orthogonalize(real_column(self.weight))
        # All singular values are all but 1: a gradient of the bound would be noise.
        bound = jax.lax.stop_gradient(norm_bound(column))
        return dense_of(column[0, : self.weight.shape[0]]), bound

    def residual(self) -> Float[Array, ""]:
        r"""A certified upper bound on $\|W^\top W - I\|_2$."""
        return isometry_residual(orthogonalize(real_column(self.weight)))


class NewtonSchulzConv(AbstractKernelConv):
    """The nearest isometry of a circular convolution, frequency by frequency.

    Costs some 28 products of [2 channels, 2 channels] matrices for each frequency when
    baked. Circular padding only: the isometry's kernel is as large as the grid.
    """

    def __check_init__(self):
        if self.padding != "circular":
            raise ValueError(
                f"padding of NewtonSchulzConv must be 'circular', not {self.padding!r}."
            )

    def resolve(self) -> tuple[AbstractLinear, Float[Array, ""]]:
        column = orthogonalize(self.spectrum())
        bound = jax.lax.stop_gradient(norm_bound(column))
        slack = transform_slack(self.grid, column.dtype)
        return SpectralConv(column, self.grid), bound * slack

    def residual(self) -> Float[Array, ""]:
        r"""A certified upper bound on $\|W^\top W - I\|_2$, worst over frequencies."""
        return isometry_residual(orthogonalize(self.spectrum()))
