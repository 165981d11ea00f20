"""From a feature vector to logits."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.linear.base import check_positive


class Head(eqx.Module):
    r"""Logits $z_c = \langle w_c, \phi\rangle + b_c$, with rows of norm 1 or free."""

    weight: Float[Array, "classes features"]
    bias: Float[Array, " classes"]
    unit_norm: bool = eqx.field(static=True)

    def __init__(
        self, features: int, classes: int, *, unit_norm: bool, key: PRNGKeyArray
    ):
        """**Arguments:** the sizes, whether rows are normalised, and a key."""
        check_positive(features=features, classes=classes)
        self.weight = jr.normal(key, (classes, features)) / features**0.5
        self.bias = jnp.zeros(classes)
        self.unit_norm = unit_norm

    def rows(self) -> Float[Array, "classes features"]:
        """The rows $w_c$ that are used."""
        if not self.unit_norm:
            return self.weight
        squares = jnp.sum(self.weight**2, axis=1, keepdims=True)
        return self.weight / jnp.sqrt(jnp.maximum(squares, 1e-12))

    def __call__(self, features: Float[Array, " features"]) -> Float[Array, " classes"]:
        return jnp.matmul(self.rows(), features, precision="highest") + self.bias
