"""Classifiers that draw random numbers, and expectation over their draws."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray


class RandomModel(eqx.Module):
    """A classifier that draws anew at each call, as the attacks see it.

    Attacks that follow gradients average loss and gradient over `draws` fresh draws at
    every step (expectation over transformation; Athalye et al., ICML 2018). Where only
    logits are asked for, they are the mean over as many draws from `key`: the same
    draws at each call, so that predictions can be repeated.
    """

    model: Callable
    key: PRNGKeyArray
    draws: int = eqx.field(static=True)

    def __init__(self, model: Callable, *, key: PRNGKeyArray, draws: int = 20):
        """**Arguments:** a map from a batch of images and a key to logits; the key of
        the predictions; the number of draws, 20 in AutoAttack."""
        if not isinstance(draws, int) or draws < 1:
            raise ValueError(f"draws must be an integer of at least 1, not {draws!r}.")
        self.model, self.key, self.draws = model, key, draws

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch classes"]:
        """The mean of the logits over the draws from `self.key`."""
        return self.mean(lambda model: model(images), self.key)

    def mean(self, function: Callable, key: PRNGKeyArray):
        """The mean over the draws of a function of the drawn `images -> logits`."""

        def add(total, key):
            drawn = function(lambda images: self.model(images, key))
            return jax.tree.map(jnp.add, total, drawn), None

        shapes = jax.eval_shape(lambda: function(lambda x: self.model(x, key)))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        # One after another: memory does not grow with the number of draws.
        total, _ = jax.lax.scan(add, zeros, jr.split(key, self.draws))
        return jax.tree.map(lambda x: x / self.draws, total)
