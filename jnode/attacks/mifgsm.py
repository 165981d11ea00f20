"""The momentum iterative method (Dong et al., CVPR 2018)."""

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
    wide,
)
from jnode.attacks.norms import project, size, steepest

DECAY = 1.0


class MIFGSM(AbstractAttack):
    r"""Steps of length $\epsilon/n$ along the sum of all gradients, each of L1 norm 1.

    It starts from the image, so it draws no random numbers. Its images transfer to
    other models better than PGD's. Each sample keeps the best of all iterates: a
    misclassified one, else that of the largest loss.
    """

    name: ClassVar[str] = "mi-fgsm"
    epsilon: Float[Array, ""]
    norm: str = eqx.field(static=True)
    steps: Int[Array, ""]
    restarts: int = eqx.field(static=True)

    def __init__(
        self, epsilon: float, *, norm: str = "linf", steps: int = 10, restarts: int = 1
    ):
        """**Arguments:** the budget in pixel units, its norm ("linf" or "l2"), and the
        number of steps. `restarts` must be 1."""
        self.epsilon = check_budget(epsilon, norm, steps=steps)
        if restarts != 1:
            raise ValueError(f"restarts of mi-fgsm must be 1, not {restarts!r}.")
        self.norm, self.restarts = norm, restarts
        # An array, so that another number of steps compiles nothing anew.
        self.steps = jnp.asarray(steps, jnp.int32)

    def search(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        clean: Logits,
        *,
        key: PRNGKeyArray,
    ) -> Images:
        length = self.epsilon / self.steps.astype(images.dtype)

        def step(i, carry):
            x, velocity, best = carry
            losses, logits, gradient = loss_and_gradient(
                model, x, labels, key=jr.fold_in(key, i)
            )
            # Any misclassified image beats any image that is not.
            value = jnp.where(misclassified(logits, labels), 1e30, losses)
            best = choose(value > best[1], (x, value), best)
            scale = jnp.maximum(size(gradient, "l1"), 1e-30)
            velocity = DECAY * velocity + gradient / wide(scale)
            x = x + length * steepest(velocity, self.norm)
            return project(x, images, self.epsilon, self.norm), velocity, best

        lowest = jnp.full(len(images), -jnp.inf, clean.dtype)
        first = (images, jnp.zeros_like(images), (images, lowest))
        # One more than steps, in which the last image is only looked at.
        *_, best = jax.lax.fori_loop(0, self.steps + 1, step, first)
        return best[0]
