"""Auto-PGD: steps that halve themselves (Croce & Hein, ICML 2020)."""

import abc
from collections.abc import Callable, Sequence
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
    Labels,
    Logits,
    check_budget,
    choose,
    cross_entropy,
    likely,
    loss_and_gradient,
    misclassified,
    one_by_one,
    wide,
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
    goes back to its best point, if the loss grew in at most 75 % of the steps since
    the last one, or if neither step nor best loss changed since. Each restart begins
    anew for samples that still stand; what none breaks comes back as the image of the
    largest loss. Stops when no sample of the batch stands.
    """

    epsilon: Float[Array, ""]
    norm: str = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    restarts: int = eqx.field(static=True)
    first: Int[Array, ""]

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
        # The number of the first restart; an array, so that every part is one program.
        self.first = jnp.asarray(0, jnp.int32)

    @property
    @abc.abstractmethod
    def loss(self) -> Loss:
        """What the attack maximises."""

    def targets(self, clean: Logits, restart: Int[Array, ""]) -> Labels:
        """The class that a restart aims at, from the clean logits; here unused."""
        del restart
        return jnp.argmax(clean, axis=1)

    def parts(self) -> Sequence["AbstractAPGD"]:
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
        def restart(carry, this):
            _, broken, highest = carry
            index, key = this
            targets = self.targets(clean, index)
            climbed, hit, loss = self._climb(
                model, images, labels, targets, broken, key
            )
            better = ~broken & (hit | (loss > highest))
            return choose(better, (climbed, hit, loss), carry), None

        lowest = jnp.full(len(images), -jnp.inf, clean.dtype)
        first = (images, misclassified(clean, labels), lowest)
        restarts = self.first + jnp.arange(self.restarts, dtype=jnp.int32)
        each = (restarts, jr.split(key, self.restarts))
        (found, _, _), _ = jax.lax.scan(restart, first, each)
        return found

    def _climb(
        self, model, images, labels, targets, broken, key
    ) -> tuple[Images, Bool[Array, " batch"], Float[Array, " batch"]]:
        """Of each sample a misclassified image, else that of the largest loss; whether
        it is misclassified; the largest loss."""

        def evaluate(x, key):
            losses, logits, gradient = loss_and_gradient(
                model,
                x,
                labels,
                loss=lambda logits, labels: self.loss(logits, labels, targets),
                key=key,
            )
            # What is not a number is no way to go.
            losses = jnp.nan_to_num(losses, nan=-jnp.inf)
            return losses, misclassified(logits, labels), gradient

        def move(x, direction, length):
            return project(
                x + wide(length) * steepest(direction, self.norm),
                images,
                self.epsilon,
                self.norm,
            )

        def step(carry):
            i, key, x, before, gradient, length, best, met, checks = carry
            key, this = jr.split(key)
            # No momentum in the first step.
            momentum = jnp.where(i > 0, MOMENTUM, 0.0)
            ahead = move(x, gradient, length)
            ahead = x + (1 - momentum) * (ahead - x) + momentum * (x - before)
            ahead = project(ahead, images, self.epsilon, self.norm)
            losses, wrong, new_gradient = evaluate(ahead, this)
            met = choose(wrong & ~met[1], (ahead, wrong), met)
            last, grew, best_then, halved_then = checks
            grew = grew + (losses > last).astype(int)
            best = choose(losses > best[2], (ahead, new_gradient, losses), best)
            stuck = grew <= enough[i]
            stuck |= ~halved_then & (best_then >= best[2])
            checking = windows[i] > 0
            halve = stuck & checking
            length = jnp.where(halve, length / 2, length)
            x, before = choose(halve, (best[0], x), (ahead, x))
            gradient = jnp.where(wide(halve), best[1], new_gradient)
            checks = (
                losses,
                jnp.where(checking, 0, grew),
                jnp.where(checking, best[2], best_then),
                jnp.where(checking, halve, halved_then),
            )
            return i + 1, key, x, before, gradient, length, best, met, checks

        def going(carry):
            return (carry[0] < self.steps) & ~jnp.all(broken | carry[7][1])

        keys = jr.split(key, 3)
        if self.norm == "linf":
            noise = jr.uniform(keys[0], images.shape, images.dtype, -1.0, 1.0)
        else:
            noise = jr.normal(keys[0], images.shape, images.dtype)
        # On the ball's surface, as in the original.
        noise = noise / wide(jnp.maximum(size(noise, self.norm), 1e-12))
        start = project(images + self.epsilon * noise, images, self.epsilon, self.norm)
        losses, wrong, gradient = evaluate(start, keys[1])
        n = len(images)
        schedule = checkpoints(self.steps)
        windows = jnp.asarray(schedule)
        enough = jnp.asarray(np.floor(RHO * schedule).astype(int))
        first = (
            jnp.zeros((), jnp.int32),
            keys[2],
            start,
            start,
            gradient,
            jnp.full(n, 2 * self.epsilon),
            (start, gradient, losses),
            (start, wrong),
            (losses, jnp.zeros(n, int), losses, jnp.ones(n, bool)),
        )
        *_, best, met, _ = jax.lax.while_loop(going, step, first)
        return jnp.where(wide(met[1]), met[0], best[0]), met[1], best[2]


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

    def __init__(
        self,
        epsilon: float,
        *,
        norm: str = "linf",
        steps: int = 100,
        restarts: int = 9,
    ):
        """As the other APGDs, with the number of targets in place of restarts."""
        super().__init__(epsilon, norm=norm, steps=steps, restarts=restarts)

    @property
    def loss(self) -> Loss:
        return targeted_ratio

    def targets(self, clean: Logits, restart: Int[Array, ""]) -> Labels:
        return likely(clean, restart)
