"""A map whose products are computed in another, shorter floating-point type."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.linear.base import AbstractLinear


class LowPrecision(AbstractLinear):
    r"""A map with its baked weights and its input rounded to `dtype`.

    What it returns has its input's type. Rounding makes it a step function, for which
    no Lipschitz constant holds: its norm is `inf`.
    """

    map: AbstractLinear
    dtype: str = eqx.field(static=True)
    rounded: bool = eqx.field(static=True, default=False)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.bake().map(x.astype(self.dtype)).astype(x.dtype)

    def transpose(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.bake().map.transpose(x.astype(self.dtype)).astype(x.dtype)

    def norm(self) -> Float[Array, ""]:
        return jnp.asarray(jnp.inf)

    def bake(self) -> "LowPrecision":
        if self.rounded:
            return self
        weights = jax.tree.map(
            lambda x: x.astype(self.dtype) if eqx.is_inexact_array(x) else x,
            self.map.bake(),
        )
        return LowPrecision(weights, self.dtype, rounded=True)

    def resolve(self) -> tuple["LowPrecision", Float[Array, ""]]:
        return self.bake(), self.norm()
