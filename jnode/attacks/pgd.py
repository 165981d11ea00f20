"""Projected gradient descent (Madry et al., ICLR 2018)."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jnode.attacks.base import (
    AbstractAttack,
    Classifier,
    Images,
    check_budget,
    cross_entropy,
    loss_and_gradient,
)
from jnode.attacks.norms import project, random_start, steepest


class PGD(AbstractAttack):
    r"""Steepest steps on the cross-entropy, projected back to the ball.

    Steps have the length $2.5\,\epsilon / n$ for $n$ steps, as in the original. Of all
    iterates and restarts each sample keeps the best: a misclassified one, else that of
    the largest loss.
    """

    name: ClassVar[str] = "pgd"
    epsilon: Float[Array, ""]
    norm: str = eqx.field(static=True)
    steps: Int[Array, ""]
    restarts: int = eqx.field(static=True)

    def __init__(
        self,
        epsilon: float,
        *,
        norm: str = "linf",
        steps: int = 40,
        restarts: int = 1,
    ):
        """**Arguments:** the budget in pixel units, its norm ("linf" or "l2"), the
        number of steps, and of random starts."""
        self.epsilon = check_budget(epsilon, norm, steps=steps, restarts=restarts)
        self.norm, self.restarts = norm, restarts
        # An array, so that another number of steps compiles nothing anew.
        self.steps = jnp.asarray(steps, jnp.int32)

    def __call__(
        self,
        model: Classifier,
        images: Images,
        labels: Int[Array, " batch"],
        *,
        key: PRNGKeyArray,
    ) -> Images:
        length = 2.5 * self.epsilon / self.steps.astype(jnp.float32)

        def score(losses, logits):
            # Any misclassified image beats any image that is not.
            wrong = jnp.argmax(logits, axis=1) != labels
            return jnp.where(wrong, 1e30, losses)

        def keep(best, candidate, value):
            best_images, best_value = best
            better = value > best_value
            chosen = jnp.where(better[:, None, None, None], candidate, best_images)
            return chosen, jnp.where(better, value, best_value)

        def step(_, carry):
            current, best = carry
            losses, logits, gradient = loss_and_gradient(model, current, labels)
            best = keep(best, current, score(losses, logits))
            current = current + length * steepest(gradient, self.norm)
            current = project(current, images, self.epsilon, self.norm)
            return current, best

        def restart(best, key):
            start = random_start(images, self.epsilon, self.norm, key)
            last, best = jax.lax.fori_loop(0, self.steps, step, (start, best))
            logits = model(last)
            best = keep(best, last, score(cross_entropy(logits, labels), logits))
            return best, None

        best = (images, jnp.full(len(images), -jnp.inf, images.dtype))
        best, _ = jax.lax.scan(restart, best, jr.split(key, self.restarts))
        return best[0]
