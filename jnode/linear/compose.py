"""Maps made of baked maps."""

import jax.numpy as jnp

from jnode.linear.base import AbstractLinear
from jnode.linear.cayley import adjoint, embed
from jnode.linear.dense import Dense, dense_of
from jnode.linear.low_precision import LowPrecision
from jnode.linear.spectral_conv import SpectralConv


def compose(outer: AbstractLinear, inner: AbstractLinear) -> AbstractLinear | None:
    r"""$x \mapsto W_2 W_1 x$ of baked maps as one map of the same kind.

    `None` where there is none: two zero-padded convolutions, say, make no convolution.
    """
    if isinstance(outer, LowPrecision) and isinstance(inner, LowPrecision):
        both = compose(outer.map, inner.map)
        return None if both is None else LowPrecision(both, outer.dtype, rounded=True)
    if isinstance(outer, Dense) and isinstance(inner, Dense):
        matrix = jnp.matmul(outer.matrix, inner.matrix, precision="highest")
        return dense_of(matrix)
    if not (isinstance(outer, SpectralConv) and isinstance(inner, SpectralConv)):
        return None
    if outer.grid != inner.grid or outer.margin or inner.margin:
        return None
    column = jnp.matmul(embed(outer.column), inner.column, precision="highest")
    return SpectralConv(column, outer.grid)


def transposed(map_: AbstractLinear) -> AbstractLinear | None:
    r"""$x \mapsto W^\top x$ of a baked map as a map, or `None`."""
    if isinstance(map_, LowPrecision):
        turned = transposed(map_.map)
        return (
            None if turned is None else LowPrecision(turned, map_.dtype, rounded=True)
        )
    if isinstance(map_, Dense):
        return dense_of(map_.matrix.T)
    if isinstance(map_, SpectralConv):
        return SpectralConv(adjoint(map_.column), map_.grid, map_.margin)
    return None


def skew_part(map_: AbstractLinear) -> AbstractLinear | None:
    r"""$x \mapsto (W - W^\top)x / 2$ of a baked square map as a map, or `None`."""
    if isinstance(map_, LowPrecision):
        skew = skew_part(map_.map)
        return None if skew is None else LowPrecision(skew, map_.dtype, rounded=True)
    if isinstance(map_, Dense):
        return dense_of(0.5 * (map_.matrix - map_.matrix.T))
    if isinstance(map_, SpectralConv):
        column = 0.5 * (map_.column - adjoint(map_.column))
        return SpectralConv(column, map_.grid, map_.margin)
    return None
