"""Dense maps: a plain matrix, and an orthogonal one by the Cayley transform."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.linear.base import AbstractPlain, AbstractReparametrized, check_positive
from jnode.linear.cayley import cayley
from jnode.linear.gram import isometry_norm, real_column, spectral_norm


class Dense(AbstractPlain):
    """An unconstrained matrix, or one that another map was baked to."""

    matrix: Float[Array, "out in"]

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        key: PRNGKeyArray,
    ):
        """**Arguments:** the sizes, and the key of the initial weights (He 2015)."""
        check_positive(in_size=in_size, out_size=out_size)
        self.matrix = jr.normal(key, (out_size, in_size)) / in_size**0.5

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        return jnp.matmul(x, self.matrix.T, precision="highest")

    def transpose(self, x: Float[Array, "*batch out"]) -> Float[Array, "*batch in"]:
        return jnp.matmul(x, self.matrix, precision="highest")

    def norm(self) -> Float[Array, ""]:
        return spectral_norm(self.matrix)

    def bake(self) -> "Dense":
        return self


class CayleyDense(AbstractReparametrized):
    r"""An orthogonal matrix by the Cayley transform; an isometry, if the sizes differ.

    Where there are fewer outputs than inputs, the transpose of an isometry. (Cayley
    1846; Trockman & Kolter, ICLR 2021.) Baking inverts a matrix of the smaller
    size by block elimination.
    """

    weight: Float[Array, "larger smaller"]
    in_size: int = eqx.field(static=True)
    out_size: int = eqx.field(static=True)

    def __init__(self, in_size: int, out_size: int, *, key: PRNGKeyArray):
        """**Arguments:** the sizes, and the key of the initial weights."""
        check_positive(in_size=in_size, out_size=out_size)
        larger, smaller = max(in_size, out_size), min(in_size, out_size)
        self.weight = jr.normal(key, (larger, smaller)) / larger**0.5
        self.in_size = in_size
        self.out_size = out_size

    def resolve(self) -> tuple[Dense, Float[Array, ""]]:
        q = cayley(real_column(self.weight))
        matrix = q[0, : self.weight.shape[0]]
        matrix = matrix.T if self.out_size < self.in_size else matrix
        return dense_of(matrix), isometry_norm(q)


def dense_of(matrix: Float[Array, "out in"]) -> Dense:
    """A `Dense` of this matrix."""
    dense = object.__new__(Dense)
    object.__setattr__(dense, "matrix", matrix)
    return dense
