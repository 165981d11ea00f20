"""Projected gradient descent (Madry et al., ICLR 2018)."""

from collections.abc import Sequence
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
    Labels,
    Logits,
    check_budget,
    choose,
    loss_and_gradient,
    misclassified,
)
from jnode.attacks.norms import project, random_start, steepest
from jnode.attacks.targets import one_by_one


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

    def parts(self) -> Sequence["PGD"]:
        return one_by_one(self)

    def search(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        clean: Logits,
        *,
        key: PRNGKeyArray,
    ) -> Images:
        length = 2.5 * self.epsilon / self.steps.astype(jnp.float32)

        def look(current, best, key):
            losses, logits, gradient = loss_and_gradient(
                model, current, labels, key=key
            )
            # Any misclassified image beats any image that is not.
            value = jnp.where(misclassified(logits, labels), 1e30, losses)
            return gradient, choose(value > best[1], (current, value), best)

        def step(carry):
            i, key, current, gradient, best = carry
            key, this = jr.split(key)
            current = current + length * steepest(gradient, self.norm)
            current = project(current, images, self.epsilon, self.norm)
            gradient, best = look(current, best, this)
            return i + 1, key, current, gradient, best

        def going(carry):
            return (carry[0] < self.steps) & ~jnp.all(carry[-1][1] == 1e30)

        def restart(best, key):
            start_key, look_key, key = jr.split(key, 3)
            start = random_start(images, self.epsilon, self.norm, start_key)
            gradient, best = look(start, best, look_key)
            first = (jnp.zeros((), int), key, start, gradient, best)
            *_, best = jax.lax.while_loop(going, step, first)
            return best, None

        wrong = misclassified(clean, labels)
        lowest = jnp.full(len(images), -jnp.inf, clean.dtype)
        best = (images, jnp.where(wrong, 1e30, lowest))
        best, _ = jax.lax.scan(restart, best, jr.split(key, self.restarts))
        return best[0]
