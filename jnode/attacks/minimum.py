"""Attacks that look for the nearest misclassified image, judged by the budget."""

import abc

import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.attacks.base import (
    AbstractAttack,
    Classifier,
    Images,
    Labels,
    Logits,
    as_input,
    compiled,
    misclassified,
    of_one_dtype,
    wide,
)
from jnode.attacks.inputs import Classes
from jnode.attacks.norms import project


class AbstractMinimumNorm(AbstractAttack):
    """Minimises the distance; the budget only judges what was found."""

    @abc.abstractmethod
    def shorten(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        best: tuple[Images, Float[Array, " batch"]],
        clean: Logits,
        enough: Float[Array, ""],
        key: PRNGKeyArray,
    ) -> tuple[Images, Float[Array, " batch"]]:
        """As `nearest`, starting from `best`; may stop when all are as near as
        `enough`."""

    def search(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        clean: Logits,
        *,
        key: PRNGKeyArray,
    ) -> Images:
        best = _begin(images, labels, clean)
        found, distance = self.shorten(
            model, images, labels, best, clean, self.epsilon, key
        )
        # Rounding of the distance must not leave the budget.
        found = project(found, images, self.epsilon, self.norm)
        return jnp.where(wide(distance <= self.epsilon), found, images)

    def nearest(
        self,
        model: Classifier,
        images: ArrayLike,
        labels: Classes,
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Images, Float[Array, " batch"]]:
        """The nearest misclassified image that was met, and how far away it is.

        The image itself at distance 0 where it is misclassified already, and at
        distance `inf` where none was met.

        **Arguments:** as of `__call__`; the key is that of random starts, if any.

        **Returns:** images of the shape and dtype of the given ones, and [batch]
        distances in the attack's norm.

        **Raises:** as `__call__`.
        """
        images, labels = as_input(images, labels)
        if len(images) == 0:
            return images, jnp.zeros(0, images.dtype)
        key = jr.key(0) if key is None else key
        return compiled(_nearest, self, model, images, labels, key)


def _nearest(attack, model, images, labels, key):
    attack, model = of_one_dtype(attack, model, images)
    clean = model(images)
    best = _begin(images, labels, clean)
    enough = jnp.zeros((), images.dtype)
    return attack.shorten(model, images, labels, best, clean, enough, key)


def _begin(images, labels, clean):
    far = jnp.full(len(images), jnp.inf, images.dtype)
    return images, jnp.where(misclassified(clean, labels), 0, far)
