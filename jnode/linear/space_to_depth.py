"""Blocks of positions become channels, and back: permutations, of norm 1."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode._checks import check_positive
from jnode.linear.base import AbstractLinear


class SpaceToDepth(AbstractLinear):
    """A block of `size` by `size` positions becomes one, its entries the channels.

    A map of stride 1 after it makes a strided one:
    `constrained((height // 2, width // 2, 4 * c), 2 * c, key=key) @ SpaceToDepth(2)` is
    an orthogonal convolution of stride 2.
    """

    size: int = eqx.field(static=True)

    def __check_init__(self):
        check_positive(size=self.size)

    def __call__(
        self, x: Float[Array, "height width *batch channels"]
    ) -> Float[Array, "rows columns *batch deep"]:
        """**Raises:** `ValueError` where `size` divides not both sides."""
        height, width, *batch, channels = x.shape
        p = self.size
        if height % p or width % p:
            raise ValueError(
                f"size must divide the grid's sides, {height} and {width}, "
                f"which {p} does not."
            )
        blocks = x.reshape(height // p, p, width // p, p, -1, channels)
        blocks = blocks.transpose(0, 2, 4, 1, 3, 5)
        return blocks.reshape(height // p, width // p, *batch, p * p * channels)

    @property
    def T(self) -> "DepthToSpace":
        return DepthToSpace(self.size)

    def norm(self) -> Float[Array, ""]:
        return jnp.asarray(1.0)


class DepthToSpace(AbstractLinear):
    """The inverse of `SpaceToDepth`: channels become a block of positions."""

    size: int = eqx.field(static=True)

    def __check_init__(self):
        check_positive(size=self.size)

    def __call__(
        self, x: Float[Array, "rows columns *batch deep"]
    ) -> Float[Array, "height width *batch channels"]:
        """**Raises:** `ValueError` where `size` squared divides not the channels."""
        rows, columns, *batch, deep = x.shape
        p = self.size
        if deep % (p * p):
            raise ValueError(
                f"size * size must divide the channels, {deep}, which {p * p} does not."
            )
        blocks = x.reshape(rows, columns, -1, p, p, deep // (p * p))
        blocks = blocks.transpose(0, 3, 1, 4, 2, 5)
        return blocks.reshape(rows * p, columns * p, *batch, deep // (p * p))

    @property
    def T(self) -> SpaceToDepth:
        return SpaceToDepth(self.size)

    def norm(self) -> Float[Array, ""]:
        return jnp.asarray(1.0)
