"""A map whose products are computed in another, shorter floating-point type."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.linear.base import AbstractLinear


class LowPrecision(AbstractLinear):
    r"""A baked map with its weights and its input rounded to `dtype`.

    What it returns has its input's type. Rounding makes it a step function, so that no
    constant bounds its stretch: its norm is `inf`.
    """

    map: AbstractLinear
    dtype: str = eqx.field(static=True)

    def __init__(self, map: AbstractLinear, dtype: str):
        """**Arguments:** a baked map, and the name of the type."""
        self.map = jax.tree.map(
            lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, map
        )
        self.dtype = dtype

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.map(x.astype(self.dtype)).astype(x.dtype)

    def transpose(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.map.transpose(x.astype(self.dtype)).astype(x.dtype)

    def norm(self) -> Float[Array, ""]:
        return jnp.asarray(jnp.inf)

    def bake(self) -> "LowPrecision":
        return self
