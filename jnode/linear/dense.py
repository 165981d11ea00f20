"""The dense map: a matrix."""

from jaxtyping import Array, Float

from jnode.linear.base import AbstractLinear, AbstractPlain
from jnode.linear.gram import spectral_norm
from jnode.linear.products import matmul


class Dense(AbstractPlain):
    """A matrix: `Dense(matrix)`."""

    matrix: Float[Array, "out in"]

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        return matmul(x, self.matrix.T)

    @property
    def T(self) -> "Dense":
        return Dense(self.matrix.T)

    def norm(self) -> Float[Array, ""]:
        return spectral_norm(self.matrix)

    def times(self, inner: AbstractLinear) -> "Dense | None":
        if not isinstance(inner, Dense):
            return None
        return Dense(matmul(self.matrix, inner.matrix))
