"""Auto-PGD: steps that halve themselves (Croce & Hein, ICML 2020)."""

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jnode.attacks.base import (
    AbstractAttack,
    Classifier,
    Images,
    check_budget,
    cross_entropy,
)
from jnode.attacks.norms import project, size, steepest

# A step is three parts of its own direction and one of the step before.
MOMENTUM = 0.25
# The share of steps that must raise the loss for the step length to stay.
RHO = 0.75

# The loss that each sample's image climbs, from its logits, label and target.
Loss = Callable[
    [Float[Array, "batch classes"], Int[Array, " batch"], Int[Array, " batch"]],
    Float[Array, " batch"],
]


def checkpoints(steps: int) -> Int[np.ndarray, " steps"]:
    """For each step, how many steps the check after it looks back on; 0 for no check.

    Intervals shrink from 22 % of all steps by 3 % each time, to 6 % at least.
    """
    length, least = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1)
    shrink = max(int(0.03 * steps), 1)
    window, since = np.zeros(steps, np.int32), 0
    for i in range(steps):
        since += 1
        if since == length:
            window[i], since = length, 0
            length = max(length - shrink, least)
    return window


def difference_of_logits_ratio(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    targets: Int[Array, " batch"],
) -> Float[Array, " batch"]:
    r"""DLR: $-(z_y - \max_{i \ne y} z_i)/(z_{\pi_1} - z_{\pi_3})$.

    It has a gradient wherever logits are large, unlike cross-entropy, as it does not
    change with their scale or offset. At least 3 classes.
    """
    del targets
    ordered = jnp.sort(logits, axis=1)
    true = _at(logits, labels)
    wrong = ordered[:, -1] != true
    other = jnp.where(wrong, ordered[:, -1], ordered[:, -2])
    return (other - true) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def targeted_ratio(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    targets: Int[Array, " batch"],
) -> Float[Array, " batch"]:
    r"""$-(z_y - z_t)/(z_{\pi_1} - (z_{\pi_3} + z_{\pi_4})/2)$. At least 4 classes."""
    ordered = jnp.sort(logits, axis=1)
    scale = ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4])
    return (_at(logits, targets) - _at(logits, labels)) / (scale + 1e-12)


def _at(logits, index):
    return jnp.take_along_axis(logits, index[:, None], axis=1)[:, 0]


class AbstractAPGD(AbstractAttack):
    """Gradient ascent with momentum whose step halves when it ceases to help.

    The step starts at twice the budget. At checkpoints a sample's step halves, and it
    goes back to its best point, if the loss grew in fewer than 75 % of the steps since
    the last one, or if neither step nor best loss changed since. Each restart begins
    anew for samples that still stand.
    """

    epsilon: Float[Array, ""]
    norm: str = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    restarts: int = eqx.field(static=True)

    def __init__(
        self,
        epsilon: float,
        *,
        norm: str = "linf",
        steps: int = 100,
        restarts: int = 1,
    ):
        """**Arguments:** the budget in pixel units, its norm ("linf" or "l2"), the
        number of steps, and of random starts (APGD-T: of targets)."""
        self.epsilon = check_budget(epsilon, norm, steps=steps, restarts=restarts)
        self.norm, self.steps, self.restarts = norm, steps, restarts

    least_classes: ClassVar[int] = 2

    @property
    @abc.abstractmethod
    def loss(self) -> Loss:
        """What the attack maximises."""

    def targets(
        self, logits: Float[Array, "batch classes"], restart: Int[Array, ""]
    ) -> Int[Array, " batch"]:
        """The class that a restart aims at, from the clean logits; here unused."""
        del restart
        return jnp.argmax(logits, axis=1)

    def __call__(
        self,
        model: Classifier,
        images: Images,
        labels: Int[Array, " batch"],
        *,
        key: PRNGKeyArray,
    ) -> Images:
        clean = model(images)
        if clean.shape[1] < self.least_classes:
            raise ValueError(
                f"{self.name} needs a model of at least {self.least_classes} classes, "
                f"not {clean.shape[1]}."
            )

        def restart(carry, this):
            found, broken = carry
            index, key = this
            targets = self.targets(clean, index)
            climbed, hit = self._climb(model, images, labels, targets, key)
            new = hit & ~broken
            found = jnp.where(_wide(new), climbed, found)
            return (found, broken | hit), None

        broken = jnp.argmax(clean, axis=1) != labels
        restarts = (jnp.arange(self.restarts), jr.split(key, self.restarts))
        (found, _), _ = jax.lax.scan(restart, (images, broken), restarts)
        return found

    def _climb(
        self, model, images, labels, targets, key
    ) -> tuple[Images, Bool[Array, " batch"]]:
        """A misclassified image of each sample, if one was met, and whether."""

        def evaluate(x):
            def total(x):
                logits = model(x)
                losses = self.loss(logits, labels, targets)
                return jnp.sum(losses), (losses, jnp.argmax(logits, axis=1) != labels)

            gradient, (losses, wrong) = jax.grad(total, has_aux=True)(x)
            # What is not finite is neither a way to go nor a success.
            return (
                jnp.nan_to_num(losses, nan=-jnp.inf),
                wrong,
                jnp.where(jnp.isfinite(gradient), gradient, 0),
            )

        def move(x, direction, length):
            return project(
                x + _wide(length) * steepest(direction, self.norm),
                images,
                self.epsilon,
                self.norm,
            )

        def step(carry, this):
            window, enough, momentum = this
            x, before, gradient, length, best, met, checks = carry
            ahead = move(x, gradient, length)
            ahead = x + (1 - momentum) * (ahead - x) + momentum * (x - before)
            ahead = project(ahead, images, self.epsilon, self.norm)
            losses, wrong, new_gradient = evaluate(ahead)
            met = _choose(wrong & ~met[1], (ahead, wrong), met)
            last, grew, best_then, halved_then = checks
            grew = grew + (losses > last).astype(int)
            best = _choose(losses > best[2], (ahead, new_gradient, losses), best)
            stuck = grew <= enough
            stuck |= ~halved_then & (best_then >= best[2])
            checking = window > 0
            halve = stuck & checking
            length = jnp.where(halve, length / 2, length)
            x, before = _choose(halve, (best[0], x), (ahead, x))
            gradient = jnp.where(_wide(halve), best[1], new_gradient)
            checks = (
                losses,
                jnp.where(checking, 0, grew),
                jnp.where(checking, best[2], best_then),
                jnp.where(checking, halve, halved_then),
            )
            return (x, before, gradient, length, best, met, checks), None

        if self.norm == "linf":
            noise = jr.uniform(key, images.shape, minval=-1.0, maxval=1.0)
        else:
            noise = jr.normal(key, images.shape)
        # On the ball's surface, as in the original.
        noise = noise / _wide(jnp.maximum(size(noise, self.norm), 1e-12))
        start = project(images + self.epsilon * noise, images, self.epsilon, self.norm)
        losses, wrong, gradient = evaluate(start)
        n = len(images)
        first = (
            start,
            start,
            gradient,
            jnp.full(n, 2.0) * self.epsilon,
            (start, gradient, losses),
            (jnp.where(_wide(wrong), start, images), wrong),
            (losses, jnp.zeros(n, int), losses, jnp.ones(n, bool)),
        )
        windows = checkpoints(self.steps)
        momentum = np.full(self.steps, MOMENTUM, np.float32)
        momentum[0] = 0
        each = (windows, np.floor(RHO * windows).astype(int), momentum)
        last, _ = jax.lax.scan(step, first, jax.tree.map(jnp.asarray, each))
        return last[5]


def _wide(mask):
    return mask[:, None, None, None]


def _choose(mask, new, old):
    """Sample by sample, one of two trees of images and numbers."""

    def pick(a, b):
        return jnp.where(_wide(mask) if a.ndim == 4 else mask, a, b)

    return jax.tree.map(pick, new, old)


class APGDCE(AbstractAPGD):
    """Auto-PGD on the cross-entropy."""

    name: ClassVar[str] = "apgd-ce"

    @property
    def loss(self) -> Loss:
        return lambda logits, labels, targets: cross_entropy(logits, labels)


class APGDDLR(AbstractAPGD):
    """Auto-PGD on the difference of logits ratio."""

    name: ClassVar[str] = "apgd-dlr"
    least_classes: ClassVar[int] = 3

    @property
    def loss(self) -> Loss:
        return difference_of_logits_ratio


class APGDT(AbstractAPGD):
    """Targeted Auto-PGD: restart by restart towards the next likely class.

    `restarts` is the number of targets, the classes of the largest clean logits after
    the predicted one: 9 in AutoAttack.
    """

    name: ClassVar[str] = "apgd-t"
    least_classes: ClassVar[int] = 4

    @property
    def loss(self) -> Loss:
        return targeted_ratio

    def targets(
        self, logits: Float[Array, "batch classes"], restart: Int[Array, ""]
    ) -> Int[Array, " batch"]:
        order = jnp.argsort(-logits, axis=1)
        # With fewer classes than restarts the targets come round again.
        return jnp.take(order, 1 + restart % (logits.shape[1] - 1), axis=1)
