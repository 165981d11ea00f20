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
from jnode.linear.dense import Dense, baked_dense
from jnode.linear.gram import (
    gram_iteration,
    isometry_norm,
    isometry_residual,
    real_column,
)
from jnode.linear.kernel import AbstractKernelConv, AbstractWeightDense
from jnode.linear.spectral_conv import SpectralConv, transform_slack

STEPS = 14


def orthogonalize(
    column: Float[Array, "batch twice_rows columns"],
) -> Float[Array, "batch twice_rows columns"]:
    """Nearly the polar factor of each matrix; column form in, column form out."""
    rows, columns = column.shape[-2] // 2, column.shape[-1]
    x = adjoint(column) if rows < columns else column
    x = x / gram_iteration(x)[:, None, None]

    def body(x, _):
        gram = jnp.matmul(embed(adjoint(x)), x, precision="highest")
        return 1.5 * x - 0.5 * jnp.matmul(embed(x), gram, precision="highest"), None

    x, _ = jax.lax.scan(body, x, length=STEPS)
    return adjoint(x) if rows < columns else x


def norm_bound(column: Float[Array, "batch twice_rows columns"]) -> Float[Array, ""]:
    """A certified bound on the largest norm: by the residual or by Gram iteration."""
    # All singular values are alike, which Gram iteration needs more squarings for.
    other = jax.lax.stop_gradient(jnp.max(gram_iteration(column, 10)))
    return jnp.minimum(isometry_norm(column), other)


class NewtonSchulzDense(AbstractWeightDense):
    """The nearest isometry of a free matrix, up to a certified residual.

    Costs some 28 products of matrices of the smaller size when baked. Singular values
    that start below 1 % of the largest one do not get to 1: `residual` tells.
    """

    def bake(self) -> Dense:
        column = orthogonalize(real_column(self.weight))
        bound = norm_bound(column)
        return baked_dense(column[0, : self.weight.shape[0]], bound)

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

    def bake(self) -> AbstractLinear:
        column = orthogonalize(self.spectrum())
        bound = norm_bound(column)
        slack = transform_slack(self.grid, column.dtype)
        return SpectralConv(column, bound * slack, self.grid)

    def residual(self) -> Float[Array, ""]:
        r"""A certified upper bound on $\|W^\top W - I\|_2$, worst over frequencies."""
        return isometry_residual(orthogonalize(self.spectrum()))
