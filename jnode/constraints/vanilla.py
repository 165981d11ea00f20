"""Layers of bounded norm in the place of Equinox's own, and back to those."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jnode.constraints.base import AbstractConstraint
from jnode.constraints.resolve import constrained, plain
from jnode.linear.conv import Conv
from jnode.linear.operators import AbstractLinear, Dense
from jnode.linear.spectral_conv import SpectralConv

# Taps that are together smaller than this part of the kernel's largest are rounding.
ROUNDING = 1e-5


class BoundedLinear(eqx.Module):
    """In the place of `eqx.nn.Linear`: a matrix of norm at most 1, and a bias."""

    map: AbstractLinear
    bias: Float[Array, " out"] | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        use_bias: bool = True,
        *,
        constraint: str | AbstractConstraint = "cayley",
        key: PRNGKeyArray,
    ):
        """**Arguments:** as of `eqx.nn.Linear`; `constraint` as of `constrained`.

        **Raises:** `ValueError` for sizes below 1 or an unknown constraint.
        """
        self.map = constrained(
            (in_features,), out_features, constraint=constraint, key=key
        )
        self.bias = jnp.zeros(out_features) if use_bias else None

    def __call__(
        self, x: Float[Array, " in"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " out"]:
        """$Wx + b$. The key is ignored, as Equinox's layers ignore it."""
        y = self.map(x)
        return y if self.bias is None else y + self.bias


class BoundedConv2d(eqx.Module):
    """In the place of `eqx.nn.Conv2d`: a convolution of norm at most 1, and a bias.

    The norm is that of the convolution as it acts on images of its grid, and not that
    of its kernel reshaped to a matrix. Stride 1; the grid stays as it is.
    """

    map: AbstractLinear
    bias: Float[Array, " out"] | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        use_bias: bool = True,
        *,
        grid: tuple[int, int],
        padding: str = "circular",
        constraint: str | AbstractConstraint = "cayley",
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_channels`, `out_channels`, `kernel_size`: as of `eqx.nn.Conv2d`, the size
            odd.
        - `grid`: height and width of the images, on which the norm depends.
        - `padding`, `constraint`: as of `constrained`.

        **Raises:** `ValueError` for any of these out of its range.
        """
        options = {"kernel_size": kernel_size, "padding": padding, "key": key}
        shape = (*grid, in_channels)
        self.map = constrained(shape, out_channels, constraint=constraint, **options)
        self.bias = jnp.zeros(out_channels) if use_bias else None

    def __call__(
        self, x: Float[Array, "in height width"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "out height width"]:
        """Channels first, as in Equinox. The key is ignored.

        **Raises:** `ValueError` for images of another grid.
        """
        y = jnp.moveaxis(self.map(jnp.moveaxis(x, 0, -1)), -1, 0)
        return y if self.bias is None else y + self.bias[:, None, None]


Bounded = BoundedLinear | BoundedConv2d


def vanilla_export(tree: PyTree) -> PyTree:
    """An equal PyTree whose bounded layers are `eqx.nn.Linear` and `eqx.nn.Conv2d`.

    `BoundedLinear` and dense maps become `eqx.nn.Linear`, `BoundedConv2d` becomes
    `eqx.nn.Conv2d`; equal up to rounding. An orthogonal convolution becomes one whose
    kernel is as large as the grid, since its inverse reaches everywhere; one that is
    rescaled keeps its kernel's size. What is exported is constrained no longer: measure
    its norm anew when its weights change.

    **Arguments:** any PyTree, such as a model of your own.

    **Raises:** `TypeError`, which names the part, for what has no such layer:
    convolutions outside of `BoundedConv2d`, whose channels come last, products of maps,
    stacked maps; vector fields and classifiers, which are more than their maps.
    """
    stop = lambda x: isinstance(x, AbstractLinear | Bounded) or _is_more(x)  # noqa: E731

    def one(path, x):
        if not stop(x):
            return x
        bias, linear = getattr(x, "bias", None), not isinstance(x, BoundedConv2d)
        map_ = plain(x.map if isinstance(x, Bounded) else x)
        if linear and isinstance(map_, Dense) and map_.matrix.ndim == 2:
            return _linear(map_.matrix, bias)
        if not linear and isinstance(map_, Conv) and map_.kernel.ndim == 4:
            return _conv2d(map_.kernel.transpose(3, 2, 0, 1), "ZEROS", bias)
        if not linear and isinstance(map_, SpectralConv) and map_.real.ndim == 3:
            return _conv2d(_cut(_taps(map_)), "CIRCULAR", bias)
        raise TypeError(
            f"tree{jax.tree_util.keystr(path)} is of type {type(x).__name__}, which no "
            "layer of Equinox equals: only matrices and BoundedConv2d are exported, "
            "and no stacks of them. jnode.resolve makes other things plain."
        )

    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=stop)


def _is_more(x) -> bool:
    """Whether it is a field or a classifier."""
    return isinstance(x, eqx.Module) and callable(getattr(x, "bounds", None))


def _linear(matrix, bias) -> eqx.nn.Linear:
    out, size = matrix.shape
    layer = eqx.nn.Linear(size, out, bias is not None, key=jr.key(0))
    return _filled(layer, matrix, bias)


def _conv2d(taps, padding_mode, bias) -> eqx.nn.Conv2d:
    out, channels, *size = taps.shape
    layer = eqx.nn.Conv2d(
        channels,
        out,
        tuple(size),
        padding=[(n // 2, (n - 1) // 2) for n in size],
        padding_mode=padding_mode,
        use_bias=bias is not None,
        key=jr.key(0),
    )
    return _filled(layer, taps, None if bias is None else bias[:, None, None])


def _filled(layer, weight, bias):
    return eqx.tree_at(
        lambda x: (x.weight, x.bias), layer, (weight, bias), is_leaf=lambda x: x is None
    )


def _taps(map_: SpectralConv) -> Float[Array, "out in height width"]:
    """The kernel of a circular convolution, as large as its grid: what it makes of a
    single bright point in the middle, mirrored."""
    (height, width), channels = map_.grid, map_.real.shape[1]
    middle = height // 2, width // 2
    points = jnp.zeros((height, width, channels, channels), map_.real.dtype)
    answers = map_(points.at[middle].set(jnp.eye(channels, dtype=points.dtype)))
    rows, columns = (
        2 * m - np.arange(n) for m, n in zip(middle, map_.grid, strict=True)
    )
    mirrored = answers[rows % height][:, columns % width]
    return mirrored.transpose(3, 2, 0, 1)


def _cut(taps: Array) -> Array:
    """The taps without a margin that holds nothing but rounding."""
    height, width = taps.shape[2:]
    size = np.abs(np.asarray(taps)).sum(axis=(0, 1))
    for radius in range(min(height, width) // 2):
        rows, columns = (
            slice(n // 2 - radius, n // 2 + radius + 1) for n in (height, width)
        )
        if size.sum() - size[rows, columns].sum() <= ROUNDING * size.max():
            return taps[:, :, rows, columns]
    return taps
