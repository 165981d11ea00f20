"""FGSM and PGD."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key

from jnode.attacks.base import (
    AbstractAttack,
    as_count,
    check_budget,
    compiled,
)
from jnode.attacks.budget import Budget
from jnode.attacks.inputs import Classes, as_input, check_ranges
from jnode.attacks.losses import AsImages, Classifier, Images, loss_and_gradient
from jnode.attacks.norms import choose, wide

# The value of an adversarial image, larger than any loss.
SUCCESS = 1e30


class FGSM(AbstractAttack):
    """One steepest step of length epsilon, from the image itself.

    The fast gradient sign method (Goodfellow et al., ICLR 2015). In L1 it fills the
    pixels of the largest gradients up to 0 or 1, until epsilon is spent: no other image
    within the budget has a larger linearised loss.
    """

    name: ClassVar[str] = "fgsm"
    steps: int = eqx.field(default=1, init=False, static=True)
    restarts: int = eqx.field(default=1, init=False, static=True)

    def search(self, model, images, goal, clean, budget, *, key):
        _, _, gradient = loss_and_gradient(model, images, goal.loss, key=key)
        return budget.step(images, gradient, budget.epsilon, images)


def traced_steps(steps: int) -> Int[Array, ""]:
    """A number of steps as an array, so that another number does not recompile."""
    return jnp.asarray(as_count("steps")(steps), jnp.int32)


class PGD(AbstractAttack):
    r"""Steepest steps on the cross-entropy, projected back to the ball.

    Projected gradient descent (Madry et al., ICLR 2018). Steps have the length
    $2.5\,\epsilon / n$ for $n$ steps, as in the original. In L1 they are sparse, as in
    SLIDE (Tramèr & Boneh, NeurIPS 2019), each the best within [0, 1] as that of `FGSM`,
    and the projection is to the ball within [0, 1] (Croce & Hein, ICML 2021). For each
    sample the best of all iterates and restarts is returned: an adversarial one, or
    else the one with the largest loss.
    """

    name: ClassVar[str] = "pgd"
    steps: Int[Array, ""] = eqx.field(default=40, kw_only=True, converter=traced_steps)

    def search(self, model, images, goal, clean, budget, *, key):
        def restart(best, key):
            start_key, last_key, key = jr.split(key, 3)
            start = budget.random_start(images, start_key)
            keys = last_key, key
            return self._climb(model, images, goal, budget, start, best, keys), None

        best = _unbeaten(images, goal, clean)
        best, _ = jax.lax.scan(restart, best, jr.split(key, self.restarts))
        return best[0]

    def from_keys(
        self,
        model: Classifier,
        images: ArrayLike,
        labels: Classes,
        budget: Budget,
        keys: Key[Array, " batch"],
    ) -> Images:
        """As a call with one restart, but with a separate random key for each image.

        So the result for an image does not depend on the rest of the batch.

        **Arguments:** as for a call, but with `keys` [batch].
        """
        images, goal = as_input(images, labels)
        budget = check_budget(budget).of_each(images)
        if len(images) == 0:
            return images
        found, clean = compiled(_from_keys, self, model, images, goal, budget, keys)
        check_ranges(labels, None, clean.shape[1])
        return found

    def _climb(self, model, images, goal, budget, start, best, keys):
        """The best images and their values, after the steps from `start`."""
        length = 2.5 * budget.epsilon / self.steps.astype(images.dtype)

        def evaluate(current, best, key):
            losses, logits, gradient = loss_and_gradient(
                model, current, goal.loss, key=key
            )
            value = jnp.where(goal.reached(logits), SUCCESS, losses)
            return gradient, choose(value > best[1], (current, value), best)

        def step(carry):
            i, key, current, gradient, best = carry
            key, this = jr.split(key)
            current = budget.step(current, gradient, length, images)
            gradient, best = evaluate(current, best, this)
            return i + 1, key, current, gradient, best

        def going(carry):
            return (carry[0] < self.steps) & ~jnp.all(carry[-1][1] == SUCCESS)

        last_key, key = keys
        gradient, best = evaluate(start, best, last_key)
        first = (jnp.zeros((), jnp.int32), key, start, gradient, best)
        *_, best = jax.lax.while_loop(going, step, first)
        return best


def _from_keys(attack, model, images, goal, budget, keys):
    model = AsImages(model)
    clean = model(images)
    start = budget.random_starts(images, keys)
    best = _unbeaten(images, goal, clean)
    # Keys of the steps, which only a model that draws random numbers uses.
    both = jr.split(keys[0])
    both = both[0], both[1]
    best, _ = attack._climb(model, images, goal, budget, start, best, both)
    return jnp.where(wide(goal.reached(clean)), images, best), clean


def _unbeaten(images, goal, clean):
    """The clean images, with values below any attacked one's unless the goal is
    reached."""
    lowest = jnp.full(len(images), -jnp.inf, clean.dtype)
    return images, jnp.where(goal.reached(clean), SUCCESS, lowest)
