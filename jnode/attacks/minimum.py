"""Attacks that look for the nearest misclassified image, judged by the budget."""

import abc

import jax
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
from jnode.attacks.norms import project, size


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


Gaps = Float[Array, " batch"]


def boundary_to(
    model: Classifier, images: Images, labels: Labels, targets: Labels
) -> tuple[Images, Gaps]:
    """The gap by which the label's logit is ahead of the target's: gradient, value."""

    def gap(x):
        logits = model(x)
        rows = jnp.arange(len(x))
        gaps = logits[rows, labels] - logits[rows, targets]
        return jnp.sum(gaps), gaps

    gradient, gaps = jax.grad(gap, has_aux=True)(images)
    return jnp.where(jnp.isfinite(gradient), gradient, 0), gaps


def nearest_boundary(
    model: Classifier, images: Images, labels: Labels, norm: str
) -> tuple[Images, Gaps]:
    """As `boundary_to`, of the class whose linearised boundary is nearest."""
    logits, pull = jax.vjp(model, images)
    classes = logits.shape[1]
    true = jax.nn.one_hot(labels, classes, dtype=logits.dtype)
    gaps = jnp.sum(true * logits, axis=1, keepdims=True) - logits

    def gradient_to(other):
        gradient = pull(true - jnp.broadcast_to(other, true.shape))[0]
        return jnp.where(jnp.isfinite(gradient), gradient, 0)

    # One after another: a batch of gradients at a time.
    normals = jax.lax.map(gradient_to, jnp.eye(classes, dtype=logits.dtype)[:, None])
    dual = "l1" if norm == "linf" else "l2"
    steep = jax.vmap(lambda normal: size(normal, dual))(normals).T
    away = jnp.abs(gaps) / jnp.maximum(steep, 1e-12)
    nearest = jnp.argmin(jnp.where(true > 0, jnp.inf, away), axis=1)
    rows = jnp.arange(len(images))
    return normals[nearest, rows], gaps[rows, nearest]
