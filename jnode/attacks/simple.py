"""The attacks that others are compared with: noise, one steepest step, and many."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key

from jnode.attacks.base import AbstractAttack, as_count, compiled, of_one_dtype
from jnode.attacks.inputs import Classes, as_input
from jnode.attacks.losses import (
    Classifier,
    Images,
    loss_and_gradient,
    misclassified,
)
from jnode.attacks.norms import choose, project, random_start, steepest, wide

# The value of an image that is misclassified: it beats the loss of any that is not.
BROKEN = 1e30


class GaussianNoise(AbstractAttack):
    r"""Adds $\mathcal N(0, \sigma^2)$ to each pixel and clips to [0, 1].

    `epsilon` is the standard deviation $\sigma$ in pixel units, as the noise itself is
    not bounded; `norm` is "sigma", of which nothing is the worst case. One draw,
    without a look at the model: no attack, but what every attack must beat.
    """

    name: ClassVar[str] = "gaussian"
    norm: str = eqx.field(default="sigma", init=False, static=True)
    steps: int = eqx.field(default=1, init=False, static=True)
    restarts: int = eqx.field(default=1, init=False, static=True)

    def search(self, model, images, labels, clean, *, key):
        noise = jr.normal(key, images.shape, images.dtype)
        return jnp.clip(images + self.epsilon * noise, 0.0, 1.0)


class FGSM(AbstractAttack):
    """One steepest step of length `epsilon`, from the image itself.

    The fast gradient sign method (Goodfellow et al., ICLR 2015).
    """

    name: ClassVar[str] = "fgsm"
    steps: int = eqx.field(default=1, init=False, static=True)
    restarts: int = eqx.field(default=1, init=False, static=True)

    def search(self, model, images, labels, clean, *, key):
        _, _, gradient = loss_and_gradient(model, images, labels, key=key)
        moved = images + self.epsilon * steepest(gradient, self.norm)
        return project(moved, images, self.epsilon, self.norm)


def traced_steps(steps: int) -> Int[Array, ""]:
    """A number of steps as an array, so that another one compiles nothing anew."""
    return jnp.asarray(as_count("steps")(steps), jnp.int32)


class PGD(AbstractAttack):
    r"""Steepest steps on the cross-entropy, projected back to the ball.

    Projected gradient descent (Madry et al., ICLR 2018). Steps have the length
    $2.5\,\epsilon / n$ for $n$ steps, as in the original. Of all iterates and restarts
    each sample keeps the best: a misclassified one, else that of the largest loss.
    """

    name: ClassVar[str] = "pgd"
    steps: Int[Array, ""] = eqx.field(default=40, kw_only=True, converter=traced_steps)

    def search(self, model, images, labels, clean, *, key):
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
