"""Projected gradient descent (Madry et al., ICLR 2018)."""

from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from jnode.attacks.base import (
    AbstractAttack,
    Classifier,
    Images,
    Labels,
    Logits,
    as_input,
    check_budget,
    choose,
    compiled,
    loss_and_gradient,
    misclassified,
    of_one_dtype,
    one_by_one,
    wide,
)
from jnode.attacks.inputs import Classes
from jnode.attacks.norms import project, random_start, steepest

# The value of an image that is misclassified: it beats the loss of any that is not.
BROKEN = 1e30


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
        def restart(best, key):
            start_key, look_key, key = jr.split(key, 3)
            start = random_start(images, self.epsilon, self.norm, start_key)
            keys = look_key, key
            return self._climb(model, images, labels, start, best, keys), None

        best = _unbeaten(images, labels, clean)
        best, _ = jax.lax.scan(restart, best, jr.split(key, self.restarts))
        return best[0]

    def from_keys(
        self,
        model: Classifier,
        images: ArrayLike,
        labels: Classes,
        keys: Key[Array, " batch"],
    ) -> Images:
        """As `__call__` with one restart, from a random start with a key per image.

        So what becomes of an image does not depend on those beside it.
        """
        images, labels = as_input(images, labels)
        if len(images) == 0:
            return images
        return compiled(_from_keys, self, model, images, labels, keys)

    def _climb(self, model, images, labels, start, best, keys):
        """The best images and their values, after the steps from `start`."""
        length = 2.5 * self.epsilon / self.steps.astype(images.dtype)

        def look(current, best, key):
            losses, logits, gradient = loss_and_gradient(
                model, current, labels, key=key
            )
            value = jnp.where(misclassified(logits, labels), BROKEN, losses)
            return gradient, choose(value > best[1], (current, value), best)

        def step(carry):
            i, key, current, gradient, best = carry
            key, this = jr.split(key)
            current = current + length * steepest(gradient, self.norm)
            current = project(current, images, self.epsilon, self.norm)
            gradient, best = look(current, best, this)
            return i + 1, key, current, gradient, best

        def going(carry):
            return (carry[0] < self.steps) & ~jnp.all(carry[-1][1] == BROKEN)

        look_key, key = keys
        gradient, best = look(start, best, look_key)
        first = (jnp.zeros((), jnp.int32), key, start, gradient, best)
        *_, best = jax.lax.while_loop(going, step, first)
        return best


def _from_keys(attack, model, images, labels, keys):
    attack, model = of_one_dtype(attack, model, images)
    clean = model(images)
    start = jax.vmap(
        lambda x, key: random_start(x[None], attack.epsilon, attack.norm, key)[0]
    )(images, keys)
    best = _unbeaten(images, labels, clean)
    # Those of the steps: only a model that draws random numbers looks at them.
    both = jr.split(keys[0])
    best, _ = attack._climb(model, images, labels, start, best, (both[0], both[1]))
    return jnp.where(wide(misclassified(clean, labels)), images, best)


def _unbeaten(images, labels, clean):
    """Images with the values that any attacked one beats, unless broken already."""
    lowest = jnp.full(len(images), -jnp.inf, clean.dtype)
    return images, jnp.where(misclassified(clean, labels), BROKEN, lowest)
