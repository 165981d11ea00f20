"""Classifiers that draw random numbers, and expectation over their draws."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray


class RandomModel(eqx.Module):
    """A classifier that draws random numbers at each call, as the attacks see it.

    Attacks that follow gradients average loss and gradient over `draws` fresh draws at
    every step (expectation over transformation; Athalye et al., ICML 2018). Where only
    logits are asked for, they are the mean over as many draws from `key`: the same
    draws at each call, so that predictions can be repeated.

    It may be a part of another classifier that is a PyTree, such as an
    `equinox.Module`, and attacks find it there (`over_draws`). Inside a plain Python
    function they cannot, and attack the mean over the draws of its predictions.
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
        return over_draws(self, lambda model: model(images))


class _Drawn(eqx.Module):
    """One draw of a random model: a classifier."""

    model: Callable
    key: PRNGKeyArray

    def __call__(self, images):
        return self.model(images, self.key)


def is_random(model: Any) -> bool:
    """Whether there is a `RandomModel` anywhere in the PyTree `model`."""
    return bool(_random_parts(model))


def over_draws(
    model: Callable,
    function: Callable[[Callable], Any],
    key: PRNGKeyArray | None = None,
) -> Any:
    """`function(model)`, or its mean over draws of each `RandomModel` in the model.

    **Arguments:** a classifier, any PyTree; a function from a classifier to arrays; the
    key of the draws, by default that of the predictions. Of several random parts the
    largest number of draws is taken.
    """
    parts = _random_parts(model)
    if not parts:
        return function(model)

    def of_draw(key):
        keys = iter(jr.split(key, len(parts)))
        return function(
            jax.tree.map(
                lambda x: _Drawn(x.model, next(keys)) if _is_part(x) else x,
                model,
                is_leaf=_is_part,
            )
        )

    def add(total, key):
        return jax.tree.map(jnp.add, total, of_draw(key)), None

    draws = max(part.draws for part in parts)
    keys = jr.split(parts[0].key if key is None else key, draws)
    shapes = jax.eval_shape(of_draw, keys[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    # One after another: memory does not grow with the number of draws.
    total, _ = jax.lax.scan(add, zeros, keys)
    return jax.tree.map(lambda x: x / draws, total)


def _random_parts(model):
    return [x for x in jax.tree.leaves(model, is_leaf=_is_part) if _is_part(x)]


def _is_part(x):
    return isinstance(x, RandomModel)
