"""Strided maps: blocks of positions become channels, which keeps all distances."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.linear.base import AbstractLinear, AbstractPlain, check_positive


class SpaceToDepth(AbstractPlain):
    """A block of `size` by `size` positions becomes one, its entries the channels.

    A permutation, so of norm 1; followed by a map of stride 1 it makes a strided one.
    """

    size: int = eqx.field(static=True)

    def __init__(self, size: int):
        """**Arguments:** the block's side, which must divide height and width."""
        check_positive(size=size)
        self.size = size

    def __call__(
        self, x: Float[Array, "height width channels"]
    ) -> Float[Array, "rows columns deep"]:
        """**Raises:** `ValueError` where `size` divides not both sides."""
        height, width, channels = x.shape
        p = self.size
        if height % p or width % p:
            raise ValueError(
                f"size must divide the grid's sides, {height} and {width}, "
                f"which {p} does not."
            )
        blocks = x.reshape(height // p, p, width // p, p, channels)
        blocks = blocks.transpose(0, 2, 1, 3, 4)
        return blocks.reshape(height // p, width // p, p * p * channels)

    def transpose(
        self, x: Float[Array, "rows columns deep"]
    ) -> Float[Array, "height width channels"]:
        rows, columns, deep = x.shape
        p = self.size
        blocks = x.reshape(rows, columns, p, p, deep // (p * p))
        blocks = blocks.transpose(0, 2, 1, 3, 4)
        return blocks.reshape(rows * p, columns * p, deep // (p * p))

    def norm(self) -> Float[Array, ""]:
        return jnp.asarray(1.0)

    def bake(self) -> "SpaceToDepth":
        return self


class Chain(AbstractLinear):
    """Maps one after another; the norm is at most the product of theirs.

    `Chain(SpaceToDepth(2), CayleyConv(4 * c, 2 * c, grid=half, key=key))` is an
    orthogonal convolution of stride 2.
    """

    maps: tuple[AbstractLinear, ...]

    def __init__(self, *maps: AbstractLinear):
        """**Arguments:** at least one map, the first to act first."""
        if not maps:
            raise ValueError("maps must hold at least one linear map.")
        self.maps = maps

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        for map_ in self.maps:
            x = map_(x)
        return x

    def transpose(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        for map_ in reversed(self.maps):
            x = map_.transpose(x)
        return x

    def norm(self) -> Float[Array, ""]:
        return self.resolve()[1]

    def bake(self) -> "Chain":
        return Chain(*(map_.bake() for map_ in self.maps))

    def resolve(self) -> tuple["Chain", Float[Array, ""]]:
        maps, norms = zip(*(map_.resolve() for map_ in self.maps), strict=True)
        bound = norms[0]
        for norm in norms[1:]:
            bound = bound * norm * (1 + 2 * jnp.finfo(bound.dtype).eps)
        return Chain(*maps), bound
