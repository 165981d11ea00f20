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
    AbstractAttack,
    Classifier,
    Images,
    Labels,
    Logits,
    check_budget,
    choose,
    misclassified,
    wide,
)
from jnode.attacks.norms import project, size, steepest
from jnode.attacks.targets import likely, one_by_one

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
    steep = jnp.abs(normals)
    # Towards smaller w.x where the gap is positive, towards larger where negative.
    direction = -jnp.sign(normals) * wide(jnp.where(gaps >= 0, 1.0, -1.0))
    room = jnp.where(direction > 0, 1 - images, images)
    speed = jnp.ones_like(steep) if norm == "linf" else steep
    wanted = jnp.abs(gaps)

    def newton(_, length):
        moves = jnp.minimum(wide(length) * speed, room)
        reached = jnp.sum(steep * moves, axis=(1, 2, 3))
        free = wide(length) * speed < room
        slope = jnp.sum(jnp.where(free, steep * speed, 0), axis=(1, 2, 3))
        ahead = length + jnp.maximum(wanted - reached, 0) / jnp.maximum(slope, 1e-20)
        return jnp.where(slope > 0, ahead, length)

    length = jax.lax.fori_loop(0, NEWTON, newton, jnp.zeros_like(wanted))
    moves = jnp.minimum(wide(length) * speed, room)
    return direction * jnp.where(normals == 0, 0, moves)


class AbstractFAB(AbstractAttack):
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
        """The gradient of the gap between the label's logit and another's; the gap."""

    def evaluations(self) -> tuple[int, int]:
        steps = self.restarts * self.steps
        return 1 + steps, steps

    def parts(self) -> Sequence["AbstractFAB"]:
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
        # What lies within the budget need not come nearer.
        found, distance = self._nearest(model, images, labels, clean, self.epsilon, key)
        # Rounding of the distance must not leave the budget.
        found = project(found, images, self.epsilon, self.norm)
        return jnp.where(wide(distance <= self.epsilon), found, images)

    def nearest(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Images, Float[Array, " batch"]]:
        """The nearest misclassified image that was met, and how far away it is.

        The image itself at distance 0 where it is misclassified already, and at
        distance `inf` where none was met. The key is that of FAB's random starts.
        """
        key = jr.key(0) if key is None else key
        return self._nearest(model, images, labels, model(images), jnp.zeros(()), key)

    def _nearest(self, model, images, labels, clean, enough, key):
        wrong = misclassified(clean, labels)

        def step(carry):
            i, x, found, distance, targets = carry
            normals, gaps = self.boundary(model, x, labels, targets)
            normals = jnp.where(jnp.isfinite(normals), normals, 0)
            from_original = gaps + jnp.sum(normals * (images - x), axis=(1, 2, 3))
            near = to_hyperplane(x, normals, gaps, self.norm)
            far = to_hyperplane(images, normals, from_original, self.norm)
            one, two = size(near, self.norm), size(far, self.norm)
            share = wide(jnp.clip(one / jnp.maximum(one + two, 1e-12), 0, BIAS))
            here, there = x + OVERSHOOT * near, images + OVERSHOOT * far
            x = jnp.clip((1 - share) * here + share * there, 0.0, 1.0)
            broken = misclassified(model(x), labels)
            far_off = size(x - images, self.norm)
            better = broken & (far_off < distance)
            found, distance = choose(better, (x, far_off), (found, distance))
            x = jnp.where(wide(broken), images + BACK * (x - images), x)
            return i + 1, x, found, distance, targets

        def going(carry):
            return (carry[0] < self.steps) & jnp.any(carry[3] > enough)

        def restart(carry, this):
            found, distance = carry
            index, key = this
            start = self.start(images, distance, index, key)
            first = (
                jnp.zeros((), int),
                start,
                found,
                distance,
                likely(clean, index),
            )
            _, _, found, distance, _ = jax.lax.while_loop(going, step, first)
            return (found, distance), None

        begin = (images, jnp.where(wrong, 0.0, jnp.inf))
        restarts = self.first + jnp.arange(self.restarts)
        each = (restarts, jr.split(key, self.restarts))
        (found, distance), _ = jax.lax.scan(restart, begin, each)
        return found, distance


class FABT(AbstractFAB):
    """FAB towards one class after another.

    `restarts` is the number of targets, the classes of the largest clean logits after
    the predicted one: 9 in AutoAttack. It is deterministic and takes no notice of its
    key.
    """

    name: ClassVar[str] = "fab-t"

    def start(self, images, distance, restart, key) -> Images:
        del distance, restart, key
        return images

    def boundary(self, model, x, labels, targets):
        def gap(x):
            logits = model(x)
            rows = jnp.arange(len(x))
            gaps = logits[rows, labels] - logits[rows, targets]
            return jnp.sum(gaps), gaps

        return jax.grad(gap, has_aux=True)(x)


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

    def start(self, images, distance, restart, key) -> Images:
        radius = jnp.minimum(distance, self.epsilon) / 2
        noise = steepest(jr.normal(key, images.shape), "l2")
        if self.norm == "linf":
            noise = jr.uniform(key, images.shape, minval=-1.0, maxval=1.0)
        moved = jnp.clip(images + wide(radius) * noise, 0.0, 1.0)
        return jnp.where(restart > 0, moved, images)

    def boundary(self, model, x, labels, targets):
        del targets
        normals, gaps = class_boundaries(model, x, labels)
        dual = "l1" if self.norm == "linf" else "l2"
        flat = jax.vmap(lambda n: size(n, dual))(normals)
        away = jnp.where(jnp.isfinite(gaps), jnp.abs(gaps), jnp.inf)
        nearest = jnp.argmin(away / jnp.maximum(flat, 1e-12), axis=0)
        rows = jnp.arange(len(x))
        return normals[nearest, rows], gaps[nearest, rows]


def class_boundaries(
    model: Classifier, x: Images, labels: Labels
) -> tuple[
    Float[Array, "classes batch height width channels"],
    Float[Array, "classes batch"],
]:
    """Of each class the gap by which the label's logit is ahead, and its gradient.

    The label's own gap is `inf`.
    """
    logits, pull = jax.vjp(model, x)
    classes = logits.shape[1]
    true = jax.nn.one_hot(labels, classes, dtype=logits.dtype)
    others = jnp.eye(classes, dtype=logits.dtype)[:, None]
    # One after another: a batch of gradients at a time.
    normals = jax.lax.map(lambda other: pull(true - other)[0], others)
    gaps = jnp.sum(true * logits, axis=1) - logits.T
    return normals, jnp.where(true.T > 0, jnp.inf, gaps)
