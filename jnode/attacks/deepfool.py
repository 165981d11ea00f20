"""DeepFool (Moosavi-Dezfooli et al., CVPR 2016)."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.attacks.base import check_budget, choose, misclassified, wide
from jnode.attacks.minimum import AbstractMinimumNorm, nearest_boundary
from jnode.attacks.norms import size, steepest

OVERSHOOT = 0.02


class DeepFool(AbstractMinimumNorm):
    r"""Steps to the nearest linearised boundary until the class changes.

    Each step moves by $|g|/\|w\|_*$ in the steepest direction of the gap $g$ between
    the label's logit and the nearest other's, $w$ its gradient; the sum of all steps is
    lengthened by 2 %. Quick, and less exact than FAB: each step costs as many
    gradients as there are classes. It draws no random numbers.
    """

    name: ClassVar[str] = "deepfool"
    epsilon: Float[Array, ""]
    norm: str = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    restarts: int = eqx.field(static=True)

    def __init__(
        self, epsilon: float, *, norm: str = "l2", steps: int = 50, restarts: int = 1
    ):
        """**Arguments:** the budget in pixel units, its norm ("linf" or "l2"), and the
        number of steps. `restarts` must be 1."""
        self.epsilon = check_budget(epsilon, norm, steps=steps)
        if restarts != 1:
            raise ValueError(f"restarts of deepfool must be 1, not {restarts!r}.")
        self.norm, self.steps, self.restarts = norm, steps, restarts

    def shorten(self, model, images, labels, best, clean, enough, key):
        del clean, enough, key

        def step(carry):
            i, x, best = carry
            normals, gaps = nearest_boundary(model, x, labels, self.norm)
            dual = size(normals, "l1" if self.norm == "linf" else "l2")
            length = (jnp.abs(gaps) + 1e-4) / jnp.maximum(dual, 1e-12)
            x = x - wide(length) * steepest(normals, self.norm)
            ahead = images + (1 + OVERSHOOT) * (x - images)
            ahead = jnp.clip(ahead, 0.0, 1.0)
            away = size(ahead - images, self.norm)
            better = misclassified(model(ahead), labels) & (away < best[1])
            return i + 1, x, choose(better, (ahead, away), best)

        def going(carry):
            return (carry[0] < self.steps) & jnp.any(jnp.isinf(carry[2][1]))

        first = (jnp.zeros((), jnp.int32), images, best)
        return jax.lax.while_loop(going, step, first)[2]
