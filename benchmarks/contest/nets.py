"""What the contestants' nets have in common."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jnode.linear import convolve
from jnode.models import Head
from jnode.models.layers import AbstractLayer


def convolved(
    x: Float[Array, "rows columns in"],
    kernel: Float[Array, "size size in out"],
    stride: int,
    padding: int,
) -> Float[Array, "height width out"]:
    """The zero-padded convolution of one image."""
    return convolve(x[None], kernel, (stride, stride), ((padding, padding),) * 2)[0]


class MeanPool(AbstractLayer):
    """The mean over all positions."""

    affine: ClassVar[bool] = True

    def __call__(self, x):
        return jnp.mean(x, axis=(0, 1))

    def lipschitz(self):
        return jnp.asarray(1.0)


def head(weight: np.ndarray, bias: np.ndarray) -> Head:
    """A linear layer as the head of a model."""
    classes, features = weight.shape
    empty = Head(features, classes, unit_norm=False, key=jax.random.key(0))
    parts = (jnp.asarray(weight), jnp.asarray(bias))
    return eqx.tree_at(lambda h: (h.weight, h.bias), empty, parts)
