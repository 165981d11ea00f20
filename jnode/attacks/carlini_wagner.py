"""The L2 attack of Carlini & Wagner (IEEE S&P 2017)."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.attacks.base import (
    Labels,
    Logits,
    check_budget,
    choose,
    loss_and_gradient,
    misclassified,
    wide,
)
from jnode.attacks.minimum import AbstractMinimumNorm
from jnode.attacks.norms import size
from jnode.attacks.square import margin

# Of the binary search's weight; Adam's, and how it forgets.
FIRST, RATE = 1e-2, 1e-2
DECAYS = (0.9, 0.999)


class CarliniWagner(AbstractMinimumNorm):
    r"""Minimises $\|x' - x\|^2 + c\max(z_y - \max_{i \ne y} z_i, 0)$ by Adam.

    $x' = (\tanh w + 1)/2$ stays in [0, 1]. For each sample a binary search finds the
    smallest weight $c$ that breaks it: `restarts` is the number of its rounds, `steps`
    that of Adam's steps in each, at a rate of 0.01. It draws no random numbers.
    """

    name: ClassVar[str] = "cw"
    epsilon: Float[Array, ""]
    norm: str = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    restarts: int = eqx.field(static=True)

    def __init__(
        self, epsilon: float, *, norm: str = "l2", steps: int = 200, restarts: int = 9
    ):
        """**Arguments:** the budget in pixel units, its norm, which is "l2", the number
        of steps, and of rounds of the binary search."""
        self.epsilon = check_budget(epsilon, norm, steps=steps, restarts=restarts)
        if norm != "l2":
            raise ValueError(f"norm of cw must be 'l2', not {norm!r}.")
        self.norm, self.steps, self.restarts = norm, steps, restarts

    def shorten(self, model, images, labels, best, clean, enough, key):
        del clean, enough
        # Not quite 0 or 1, where the inverse of tanh is infinite.
        begin = jnp.arctanh((2 * images - 1) * (1 - 1e-6))

        def step(i, carry):
            w, moments, weight, hit, best = carry
            x = (jnp.tanh(w) + 1) / 2
            _, logits, gradient = loss_and_gradient(
                model, x, labels, loss=hinge, key=key
            )
            away = size(x - images, "l2")
            wrong = misclassified(logits, labels)
            best = choose(wrong & (away < best[1]), (x, away), best)
            gradient = 2 * (x - images) + wide(weight) * gradient
            gradient = gradient * 2 * x * (1 - x)
            means = tuple(
                decay * moment + (1 - decay) * power
                for decay, moment, power in zip(
                    DECAYS, moments, (gradient, gradient**2), strict=True
                )
            )
            t = (i + 1).astype(w.dtype)
            first, second = (
                mean / (1 - decay**t) for decay, mean in zip(DECAYS, means, strict=True)
            )
            w = w - RATE * first / (jnp.sqrt(second) + 1e-8)
            return w, means, weight, hit | wrong, best

        def round_(carry, _):
            weight, low, high, best = carry
            zeros = jnp.zeros_like(images)
            missed = jnp.zeros(len(images), bool)
            first = (begin, (zeros, zeros), weight, missed, best)
            *_, hit, best = jax.lax.fori_loop(0, self.steps, step, first)
            high = jnp.where(hit, weight, high)
            low = jnp.where(hit, low, weight)
            # Ten times as large until it breaks the sample, then halfway.
            weight = jnp.where(jnp.isinf(high), 10 * weight, (low + high) / 2)
            return (weight, low, high, best), None

        n = len(images)
        weight, low, high = (jnp.full(n, x, images.dtype) for x in (FIRST, 0, jnp.inf))
        first = (weight, low, high, best)
        (*_, best), _ = jax.lax.scan(round_, first, None, length=self.restarts)
        return best


def hinge(logits: Logits, labels: Labels) -> Float[Array, " batch"]:
    """By how much the label's logit is ahead, 0 where it is not."""
    return jnp.maximum(margin(logits, labels), 0)
