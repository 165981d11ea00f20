"""Fast adaptive boundary attack: the nearest adversarial image (Croce & Hein, 2020)."""

import abc
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jnode.attacks.base import AbstractAttack, compiled, count_field
from jnode.attacks.budget import Budget, random_direction
from jnode.attacks.goals import AbstractGoal, Targeted
from jnode.attacks.inputs import Classes, as_input, check_ranges
from jnode.attacks.losses import AsImages, Classifier, Images, Labels
from jnode.attacks.norms import choose, filled, room, size, wide

# Overshoot past the hyperplane, largest bias towards the original, and backward step.
OVERSHOOT, BIAS, BACK = 1.05, 0.1, 0.9
NEWTON = 12


def to_hyperplane(
    images: Images, normals: Images, gaps: Float[Array, " batch"], norm: str
) -> Images:
    r"""The smallest change that brings each image to a hyperplane, inside [0, 1].

    With $\langle w, x\rangle - b$ = `gaps` the change $d$ has $\langle w, d\rangle =
    -$`gaps`: each pixel moves against $w$ by $\min(\lambda, r_i)$ (Linf) or
    $\min(\lambda|w_i|, r_i)$ (L2), $r_i$ the room that [0, 1] leaves it. The left side
    is concave in $\lambda$, so Newton's iteration from 0 converges to the root from
    below. In L1 the pixels of the largest $|w_i|$ move by all their room. If no change
    within [0, 1] reaches the hyperplane, the largest one is returned.
    """
    if norm == "l1":
        steep = jnp.abs(normals)
        direction = -jnp.sign(normals) * wide(jnp.where(gaps >= 0, 1.0, -1.0))
        most = room(images, direction)
        return direction * filled(steep, most, jnp.abs(gaps), cost=steep)
    # Flat: over one or three channels XLA's CPU backend takes sums one by one.
    shape = images.shape
    images, normals = (x.reshape(len(x), -1) for x in (images, normals))
    steep = jnp.abs(normals)
    # Decreases w.x if the gap is positive and increases it if negative.
    direction = -jnp.sign(normals) * jnp.where(gaps >= 0, 1.0, -1.0)[:, None]
    most = room(images, direction)
    speed = jnp.ones_like(steep) if norm == "linf" else steep
    wanted = jnp.abs(gaps)

    def newton(carry):
        i, length, _ = carry
        reach = length[:, None] * speed
        reached = jnp.sum(steep * jnp.minimum(reach, most), axis=1)
        slope = jnp.sum(jnp.where(reach < most, steep * speed, 0), axis=1)
        ahead = length + jnp.maximum(wanted - reached, 0) / jnp.maximum(slope, 1e-20)
        ahead = jnp.where(slope > 0, ahead, length)
        return i + 1, ahead, jnp.any(ahead > length)

    def going(carry):
        i, _, moved = carry
        return (i < NEWTON) & moved

    first = (0, jnp.zeros_like(wanted), jnp.asarray(True))
    _, length, _ = jax.lax.while_loop(going, newton, first)
    moves = jnp.minimum(length[:, None] * speed, most)
    return (direction * jnp.where(normals == 0, 0, moves)).reshape(shape)


class AbstractFAB(AbstractAttack):
    """Looks for the nearest adversarial image.

    Each step linearises the classifier between the label and another class, projects
    both the iterate and the original to that boundary within [0, 1], and moves to a
    point between the two. An adversarial iterate is pulled back towards the original.
    It minimises the distance; the budget is only used to judge the result. It stops
    when it has succeeded within the budget on the whole batch.
    """

    steps: int = count_field("steps", 100)

    @abc.abstractmethod
    def start(
        self,
        images: Images,
        radius: Float[Array, " batch"],
        norm: str,
        restart: Int[Array, ""],
        key: PRNGKeyArray,
    ) -> Images:
        """The first iterate of a restart, at most `radius` from the images."""

    @abc.abstractmethod
    def boundary(
        self,
        model: Classifier,
        x: Images,
        goal: AbstractGoal,
        targets: Labels,
        norm: str,
    ) -> tuple[Images, Float[Array, " batch"]]:
        """The gradient and value of the gap between two logits, which is positive until
        the goal is reached."""

    def search(self, model, images, goal, clean, budget, *, key):
        within = budget.epsilon
        found, distance = _shorten(
            self, model, images, goal, clean, budget, within, key
        )
        # Rounding of the distance must not exceed the budget.
        found = budget.project(found, images)
        return jnp.where(wide(distance <= within), found, images)

    def nearest(
        self,
        model: Classifier,
        images: ArrayLike,
        labels: Classes,
        norm: str,
        *,
        targets: Classes | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Images, Float[Array, " batch"]]:
        """The nearest adversarial image that was found, and its distance.

        If the goal is already reached for an image, the image itself at distance 0; if
        no adversarial image was found, the image itself at distance `inf`.

        **Arguments:** as for a call, with the `norm` of the distance instead of a
        budget; the key is that of random starts, if any.

        **Returns:** images of the shape and dtype of the given ones, and [batch]
        distances.

        **Raises:** as for a call.
        """
        images, goal = as_input(images, labels, targets)
        # No two images are farther apart.
        pixels = math.prod(images.shape[1:])
        longest = {"l2": math.sqrt(pixels), "l1": pixels}.get(norm, 1.0)
        whole = Budget(norm, longest).of_each(images)
        if len(images) == 0:
            return images, jnp.zeros(0, images.dtype)
        key = jr.key(0) if key is None else key
        found = compiled(_nearest, self, model, images, goal, whole, key)
        check_ranges(labels, targets, found[2].shape[1])
        return found[:2]


def _nearest(attack, model, images, goal, whole, key):
    model = AsImages(model)
    clean, enough = model(images), jnp.zeros(len(images), images.dtype)
    found = _shorten(attack, model, images, goal, clean, whole, enough, key)
    return *found, clean


def _shorten(attack, model, images, goal, clean, budget, enough, key):
    """The nearest adversarial images and their distances. The search may stop when all
    distances are at most `enough`. Random starts lie within the budget."""
    norm = budget.norm

    def step(carry):
        i, x, best, targets = carry
        normals, gaps = attack.boundary(model, x, goal, targets, norm)
        ahead = (normals * (images - x)).reshape(len(x), -1)
        from_original = gaps + jnp.sum(ahead, axis=1)
        near = to_hyperplane(x, normals, gaps, norm)
        far = to_hyperplane(images, normals, from_original, norm)
        one, two = size(near, norm), size(far, norm)
        share = wide(jnp.clip(one / jnp.maximum(one + two, 1e-12), 0, BIAS))
        here, there = x + OVERSHOOT * near, images + OVERSHOOT * far
        x = jnp.clip((1 - share) * here + share * there, 0.0, 1.0)
        success = goal.reached(model(x))
        away = size(x - images, norm)
        best = choose(success & (away < best[1]), (x, away), best)
        x = jnp.where(wide(success), images + BACK * (x - images), x)
        return i + 1, x, best, targets

    def going(carry):
        return (carry[0] < attack.steps) & jnp.any(carry[2][1] > enough)

    def restart(best, this):
        index, key = this
        radius = jnp.minimum(best[1], budget.epsilon) / 2
        start = attack.start(images, radius, norm, index, key)
        first = (jnp.zeros((), jnp.int32), start, best, goal.target(clean, index))
        return jax.lax.while_loop(going, step, first)[2], None

    far = jnp.full(len(images), jnp.inf, images.dtype)
    best = (images, jnp.where(goal.reached(clean), 0, far))
    restarts = attack.first + jnp.arange(attack.restarts, dtype=jnp.int32)
    each = (restarts, jr.split(key, attack.restarts))
    return jax.lax.scan(restart, best, each)[0]


def _towards(model, x, goal, targets):
    """The gap to the targets' logits."""

    def gap(x):
        logits = model(x)
        rows = jnp.arange(len(x))
        gaps = logits[rows, goal.rival(logits)] - logits[rows, targets]
        return jnp.sum(gaps), gaps

    gradient, gaps = jax.grad(gap, has_aux=True)(x)
    return jnp.where(jnp.isfinite(gradient), gradient, 0), gaps


class FABT(AbstractFAB):
    """FAB towards one class after another.

    `restarts` is the number of targets, the classes of the largest clean logits after
    the predicted one: 9 in AutoAttack. It draws no random numbers, so if the call gives
    targets one restart is enough.
    """

    name: ClassVar[str] = "fab-t"
    restarts: int = count_field("restarts", 9)

    def start(self, images, radius, norm, restart, key):
        return images

    def boundary(self, model, x, goal, targets, norm):
        return _towards(model, x, goal, targets)


class FAB(AbstractFAB):
    """FAB towards the class whose linearised boundary is nearest at each step.

    The first restart begins at the image, the others at a random point halfway to the
    nearest adversarial image or to the budget. Each step costs as many gradients as
    there are classes, or one if the call gives targets.
    """

    name: ClassVar[str] = "fab"

    def start(self, images, radius, norm, restart, key):
        if norm == "linf":
            noise = jr.uniform(key, images.shape, images.dtype, -1.0, 1.0)
        else:
            noise = random_direction(images, norm, key)
        moved = jnp.clip(images + wide(radius) * noise, 0.0, 1.0)
        return jnp.where(restart > 0, moved, images)

    def boundary(self, model, x, goal, targets, norm):
        if isinstance(goal, Targeted):
            return _towards(model, x, goal, targets)
        logits, pull = jax.vjp(model, x)
        classes = logits.shape[1]
        true = jax.nn.one_hot(goal.classes, classes, dtype=logits.dtype)
        gaps = jnp.sum(true * logits, axis=1, keepdims=True) - logits

        def gradient_to(other):
            gradient = pull(true - jnp.broadcast_to(other, true.shape))[0]
            return jnp.where(jnp.isfinite(gradient), gradient, 0)

        # One after another: a batch of gradients at a time.
        others = jnp.eye(classes, dtype=logits.dtype)[:, None]
        normals = jax.lax.map(gradient_to, others)
        dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
        steep = jax.vmap(lambda normal: size(normal, dual))(normals).T
        away = jnp.abs(gaps) / jnp.maximum(steep, 1e-12)
        nearest = jnp.argmin(jnp.where(true > 0, jnp.inf, away), axis=1)
        rows = jnp.arange(len(x))
        return normals[nearest, rows], gaps[rows, nearest]
