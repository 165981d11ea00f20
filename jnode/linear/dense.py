"""Dense maps: a plain matrix, and an orthogonal one by the Cayley transform."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.linear.base import AbstractLinear, AbstractReparametrized, check_positive
from jnode.linear.cayley import cayley
from jnode.linear.gram import isometry_norm, real_column


class Dense(AbstractLinear):
    """An unconstrained matrix, or one that another map was baked to."""

    matrix: Float[Array, "out in"]
    bound: Float[Array, ""] | None

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
        self.bound = None

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        return jnp.matmul(x, self.matrix.T, precision="highest")

    def transpose(self, x: Float[Array, "*batch out"]) -> Float[Array, "*batch in"]:
        return jnp.matmul(x, self.matrix, precision="highest")

    def norm(self) -> Float[Array, ""]:
        return jnp.asarray(jnp.inf) if self.bound is None else self.bound

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

    def bake(self) -> Dense:
        q = cayley(real_column(self.weight))
        matrix = q[0, : self.weight.shape[0]]
        matrix = matrix.T if self.out_size < self.in_size else matrix
        return baked_dense(matrix, isometry_norm(q))


def baked_dense(matrix: Float[Array, "out in"], bound: Float[Array, ""]) -> Dense:
    """A `Dense` of this matrix, whose norm is known to be at most `bound`."""
    dense = object.__new__(Dense)
    object.__setattr__(dense, "matrix", matrix)
    object.__setattr__(dense, "bound", bound)
    return dense
