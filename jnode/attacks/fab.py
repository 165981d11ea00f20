"""Fast adaptive boundary attack (Croce & Hein, ICML 2020)."""

import abc
from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jnode.attacks.base import (
    Classifier,
    Images,
    Labels,
    check_budget,
    choose,
    likely,
    misclassified,
    one_by_one,
    wide,
)
from jnode.attacks.minimum import AbstractMinimumNorm, boundary_to, nearest_boundary
from jnode.attacks.norms import size, steepest

# How far past the hyperplane, how much towards the original at most, and how far back.
OVERSHOOT, BIAS, BACK = 1.05, 0.1, 0.9
NEWTON = 12


def to_hyperplane(
    images: Images, normals: Images, gaps: Float[Array, " batch"], norm: str
) -> Images:
    r"""The smallest change that brings each image to a hyperplane, inside [0, 1].

    With $\langle w, x\rangle - b$ = `gaps` the change $d$ has $\langle w, d\rangle =
    -$`gaps`: each pixel moves against $w$ by $\min(\lambda, r_i)$ (Linf) or
    $\min(\lambda|w_i|, r_i)$ (L2), $r_i$ the room that [0, 1] leaves it. The left side
    is concave in $\lambda$, so Newton's iteration climbs to the root from 0. Where all
    room is not enough, all of it.
    """
    # Flat: over one or three channels XLA's CPU backend takes sums one by one.
    shape = images.shape
    images, normals = (x.reshape(len(x), -1) for x in (images, normals))
    steep = jnp.abs(normals)
    # Towards smaller w.x where the gap is positive, towards larger where negative.
    direction = -jnp.sign(normals) * jnp.where(gaps >= 0, 1.0, -1.0)[:, None]
    room = jnp.where(direction > 0, 1 - images, images)
    speed = jnp.ones_like(steep) if norm == "linf" else steep
    wanted = jnp.abs(gaps)

    def newton(carry):
        i, length, _ = carry
        reach = length[:, None] * speed
        reached = jnp.sum(steep * jnp.minimum(reach, room), axis=1)
        slope = jnp.sum(jnp.where(reach < room, steep * speed, 0), axis=1)
        ahead = length + jnp.maximum(wanted - reached, 0) / jnp.maximum(slope, 1e-20)
        ahead = jnp.where(slope > 0, ahead, length)
        return i + 1, ahead, jnp.any(ahead > length)

    def going(carry):
        i, _, moved = carry
        return (i < NEWTON) & moved

    first = (0, jnp.zeros_like(wanted), jnp.asarray(True))
    _, length, _ = jax.lax.while_loop(going, newton, first)
    moves = jnp.minimum(length[:, None] * speed, room)
    return (direction * jnp.where(normals == 0, 0, moves)).reshape(shape)


class AbstractFAB(AbstractMinimumNorm):
    """Looks for the nearest misclassified image.

    Each step linearises the classifier between the label and another class, projects
    both the iterate and the original to that boundary within [0, 1], and goes between
    the two. A misclassified iterate is pulled back towards the original. It minimises
    the distance; the budget only judges the result. Stops when all samples of the batch
    are broken within the budget.
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
        restarts: int = 9,
    ):
        """**Arguments:** the budget in pixel units, its norm ("linf" or "l2"), the
        number of steps, and of starts (FAB) or targets (FAB-T)."""
        self.epsilon = check_budget(epsilon, norm, steps=steps, restarts=restarts)
        self.norm, self.steps, self.restarts = norm, steps, restarts
        # The number of the first restart; an array, so that every part is one program.
        self.first = jnp.asarray(0, jnp.int32)

    @abc.abstractmethod
    def start(
        self,
        images: Images,
        distance: Float[Array, " batch"],
        restart: Int[Array, ""],
        key: PRNGKeyArray,
    ) -> Images:
        """Where a restart begins."""

    @abc.abstractmethod
    def boundary(
        self, model: Classifier, x: Images, labels: Labels, targets: Labels
    ) -> tuple[Images, Float[Array, " batch"]]:
        """The gap between the label's logit and another's: its gradient and value."""

    def evaluations(self) -> tuple[int, int]:
        steps = self.restarts * self.steps
        return 1 + steps, steps

    def parts(self) -> Sequence["AbstractFAB"]:
        return one_by_one(self)

    def shorten(self, model, images, labels, best, clean, enough, key):
        def step(carry):
            i, x, best, targets = carry
            normals, gaps = self.boundary(model, x, labels, targets)
            ahead = (normals * (images - x)).reshape(len(x), -1)
            from_original = gaps + jnp.sum(ahead, axis=1)
            near = to_hyperplane(x, normals, gaps, self.norm)
            far = to_hyperplane(images, normals, from_original, self.norm)
            one, two = size(near, self.norm), size(far, self.norm)
            share = wide(jnp.clip(one / jnp.maximum(one + two, 1e-12), 0, BIAS))
            here, there = x + OVERSHOOT * near, images + OVERSHOOT * far
            x = jnp.clip((1 - share) * here + share * there, 0.0, 1.0)
            broken = misclassified(model(x), labels)
            away = size(x - images, self.norm)
            best = choose(broken & (away < best[1]), (x, away), best)
            x = jnp.where(wide(broken), images + BACK * (x - images), x)
            return i + 1, x, best, targets

        def going(carry):
            return (carry[0] < self.steps) & jnp.any(carry[2][1] > enough)

        def restart(best, this):
            index, key = this
            start = self.start(images, best[1], index, key)
            first = (jnp.zeros((), jnp.int32), start, best, likely(clean, index))
            return jax.lax.while_loop(going, step, first)[2], None

        restarts = self.first + jnp.arange(self.restarts, dtype=jnp.int32)
        each = (restarts, jr.split(key, self.restarts))
        return jax.lax.scan(restart, best, each)[0]


class FABT(AbstractFAB):
    """FAB towards one class after another.

    `restarts` is the number of targets, the classes of the largest clean logits after
    the predicted one: 9 in AutoAttack. It draws no random numbers.
    """

    name: ClassVar[str] = "fab-t"

    def start(self, images, distance, restart, key):
        del distance, restart, key
        return images

    def boundary(self, model, x, labels, targets):
        return boundary_to(model, x, labels, targets)


class FAB(AbstractFAB):
    """FAB towards the class whose linearised boundary is nearest, step by step.

    The first restart begins at the image, the others at a random point halfway to the
    nearest misclassified image or to the budget. Each step costs as many gradients as
    there are classes.
    """

    name: ClassVar[str] = "fab"

    def __init__(
        self,
        epsilon: float,
        *,
        norm: str = "linf",
        steps: int = 100,
        restarts: int = 1,
    ):
        """As FAB-T, with the number of starts in place of targets."""
        super().__init__(epsilon, norm=norm, steps=steps, restarts=restarts)

    def start(self, images, distance, restart, key):
        radius = jnp.minimum(distance, self.epsilon) / 2
        if self.norm == "linf":
            noise = jr.uniform(key, images.shape, images.dtype, -1.0, 1.0)
        else:
            noise = steepest(jr.normal(key, images.shape, images.dtype), self.norm)
        moved = jnp.clip(images + wide(radius) * noise, 0.0, 1.0)
        return jnp.where(restart > 0, moved, images)

    def boundary(self, model, x, labels, targets):
        del targets
        return nearest_boundary(model, x, labels, self.norm)
