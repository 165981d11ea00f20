"""The interface of linear maps, and the maps other than convolutions.

Convolutions are in `spectral_conv.py` (circular) and `conv.py` (zero-padded).
"""

import abc
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode._checks import Fixed, check_positive
from jnode.bounds import times
from jnode.linear.gram import spectral_norm
from jnode.linear.products import matmul, state_matmul


class AbstractLinear(Fixed):
    r"""A linear map $x \mapsto Wx$ whose largest singular value can be bounded.

    A map takes a batch as well, its axes before the last one: `[*batch, size]`, or
    `[height, width, *batch, channels]`.

    No map stores a bound beside its weights, since a later change of the weights could
    make it false. For the same reason a subclass of a map cannot override `__call__`.
    """

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """$Wx$."""

    @property
    @abc.abstractmethod
    def T(self) -> "AbstractLinear":
        r"""The transposed map $x \mapsto W^\top x$."""

    @abc.abstractmethod
    def norm(self) -> Float[Array, ""]:
        r"""A certified upper bound on $\|W\|_2$, its rounding allowance included.

        It is computed from the arrays that the map holds now; `inf` if none is known.

        **Raises:** `TypeError` for weights in half precision.
        """

    @final
    def __matmul__(self, inner: "AbstractLinear") -> "AbstractLinear":
        r"""$x \mapsto WVx$, with `inner` $V$.

        Two matrices, or two circular convolutions on the same grid, give one map of
        that kind; all other pairs give a `Product`.
        """
        if not isinstance(inner, AbstractLinear):
            return NotImplemented
        whole = self.times(inner) if isinstance(self, AbstractPlain) else None
        return Product(self, inner) if whole is None else whole


class AbstractPlain(AbstractLinear):
    """A map that depends linearly on the arrays that it holds."""

    @property
    @abc.abstractmethod
    def T(self) -> "AbstractPlain":
        r"""The transposed map $x \mapsto W^\top x$, of the same kind."""

    @abc.abstractmethod
    def times(self, inner: AbstractLinear) -> "AbstractPlain | None":
        """The product with another map as one map of this kind, or `None`."""

    @final
    def __sub__(self, other: "AbstractPlain") -> "AbstractPlain":
        """$W - V$ of maps of the same kind and size."""
        same = jax.tree.structure(self) == jax.tree.structure(other)
        return jax.tree.map(jnp.subtract, self, other) if same else NotImplemented


class Product(AbstractLinear):
    r"""$x \mapsto WVx$, the composition of two maps; `W @ V` makes one.

    Its bound is the product of theirs.
    """

    outer: AbstractLinear
    inner: AbstractLinear

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.outer(self.inner(x))

    @property
    def T(self) -> "Product":
        return Product(self.inner.T, self.outer.T)

    def norm(self) -> Float[Array, ""]:
        outer = self.outer.norm()
        inner = self.inner.norm().astype(outer.dtype)
        return times(outer, inner) * (1 + 2 * jnp.finfo(outer.dtype).eps)


class LowPrecision(AbstractPlain):
    r"""A map with its weights and its input rounded to `dtype`.

    The result has the input's dtype. Rounding makes the map a step function, which has
    no Lipschitz constant, so its norm is `inf`.
    """

    map: AbstractPlain
    dtype: str = eqx.field(static=True)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        # Loops compute with the rounded weights, but sum gradients in full precision.
        short = jax.tree.map(lambda w: w.astype(self.dtype), self.map)
        return short(x.astype(self.dtype)).astype(x.dtype)

    @property
    def T(self) -> "LowPrecision":
        return LowPrecision(self.map.T, self.dtype)

    def norm(self) -> Float[Array, ""]:
        return jnp.asarray(jnp.inf)

    def times(self, inner: AbstractLinear) -> "LowPrecision | None":
        if not isinstance(inner, LowPrecision) or inner.dtype != self.dtype:
            return None
        whole = self.map.times(inner.map)
        return None if whole is None else LowPrecision(whole, self.dtype)


class Dense(AbstractPlain):
    """A matrix: `Dense(matrix)`."""

    matrix: Float[Array, "out in"]

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        return state_matmul(x, self.matrix.T)

    @property
    def T(self) -> "Dense":
        return Dense(self.matrix.T)

    def norm(self) -> Float[Array, ""]:
        return spectral_norm(self.matrix)

    def times(self, inner: AbstractLinear) -> "Dense | None":
        if not isinstance(inner, Dense):
            return None
        return Dense(matmul(self.matrix, inner.matrix))


class SpaceToDepth(AbstractLinear):
    """Turns each block of `size` by `size` positions into the channels of one position.

    Followed by a map of stride 1 it gives a strided map: `constrained((height // 2,
    width // 2, 4 * c), 2 * c, key=key) @ SpaceToDepth(2)` is an orthogonal convolution
    of stride 2.
    """

    size: int = eqx.field(static=True)

    def __check_init__(self):
        check_positive(size=self.size)

    def __call__(
        self, x: Float[Array, "height width *batch channels"]
    ) -> Float[Array, "rows columns *batch deep"]:
        """**Raises:** `ValueError` if `size` does not divide both sides."""
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
        """**Raises:** `ValueError` if `size` squared does not divide the number of
        channels."""
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
