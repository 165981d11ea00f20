"""Fast adaptive boundary attack, targeted (Croce & Hein, ICML 2020)."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jnode.attacks.base import AbstractAttack, Classifier, Images, check_budget
from jnode.attacks.norms import project, size

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
    direction = -jnp.sign(normals) * _wide(jnp.where(gaps >= 0, 1.0, -1.0))
    room = jnp.where(direction > 0, 1 - images, images)
    speed = jnp.ones_like(steep) if norm == "linf" else steep
    wanted = jnp.abs(gaps)

    def newton(_, length):
        moves = jnp.minimum(_wide(length) * speed, room)
        reached = jnp.sum(steep * moves, axis=(1, 2, 3))
        free = _wide(length) * speed < room
        slope = jnp.sum(jnp.where(free, steep * speed, 0), axis=(1, 2, 3))
        ahead = length + jnp.maximum(wanted - reached, 0) / jnp.maximum(slope, 1e-20)
        return jnp.where(slope > 0, ahead, length)

    length = jax.lax.fori_loop(0, NEWTON, newton, jnp.zeros_like(wanted))
    moves = jnp.minimum(_wide(length) * speed, room)
    return direction * jnp.where(normals == 0, 0, moves)


class FABT(AbstractAttack):
    """Looks for the nearest misclassified image, towards one class after another.

    Each step linearises the classifier between the label and the target, projects both
    the iterate and the original to that boundary within [0, 1], and goes between the
    two. A misclassified iterate is pulled back towards the original. It minimises the
    distance; the budget only judges the result. `restarts` is the number of targets,
    the classes of the largest clean logits after the predicted one: 9 in AutoAttack.
    It is deterministic and takes no notice of its key.
    """

    name: ClassVar[str] = "fab-t"
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
        restarts: int = 9,
    ):
        """**Arguments:** the budget in pixel units, its norm ("linf" or "l2"), the
        number of steps towards each target, and of targets."""
        self.epsilon = check_budget(epsilon, norm, steps=steps, restarts=restarts)
        self.norm, self.steps, self.restarts = norm, steps, restarts

    def __call__(
        self,
        model: Classifier,
        images: Images,
        labels: Int[Array, " batch"],
        *,
        key: PRNGKeyArray,
    ) -> Images:
        del key
        found, distance = self.nearest(model, images, labels)
        inside = distance <= self.epsilon
        found = jnp.where(_wide(inside), found, images)
        # Rounding of the distance must not leave the budget.
        return project(found, images, self.epsilon, self.norm)

    def nearest(
        self, model: Classifier, images: Images, labels: Int[Array, " batch"]
    ) -> tuple[Images, Float[Array, " batch"]]:
        """The nearest misclassified image that was met, and how far away it is.

        The image itself at distance 0 where it is misclassified already, and at
        distance `inf` where none was met.
        """
        clean = model(images)
        order = jnp.argsort(-clean, axis=1)
        wrong = order[:, 0] != labels

        def gap(x, targets):
            logits = model(x)
            rows = jnp.arange(len(x))
            gaps = logits[rows, labels] - logits[rows, targets]
            return jnp.sum(gaps), gaps

        def step(_, carry):
            x, found, distance, targets = carry
            normals, gaps = jax.grad(gap, has_aux=True)(x, targets)
            normals = jnp.where(jnp.isfinite(normals), normals, 0)
            from_original = gaps + jnp.sum(normals * (images - x), axis=(1, 2, 3))
            near = to_hyperplane(x, normals, gaps, self.norm)
            far = to_hyperplane(images, normals, from_original, self.norm)
            one, two = size(near, self.norm), size(far, self.norm)
            share = _wide(jnp.clip(one / jnp.maximum(one + two, 1e-12), 0, BIAS))
            here, there = x + OVERSHOOT * near, images + OVERSHOOT * far
            x = jnp.clip((1 - share) * here + share * there, 0.0, 1.0)
            broken = jnp.argmax(model(x), axis=1) != labels
            far_off = size(x - images, self.norm)
            better = broken & (far_off < distance)
            found = jnp.where(_wide(better), x, found)
            distance = jnp.where(better, far_off, distance)
            x = jnp.where(_wide(broken), images + BACK * (x - images), x)
            return x, found, distance, targets

        def towards(carry, index):
            found, distance = carry
            # With fewer classes than targets they come round again.
            targets = jnp.take(order, 1 + index % (clean.shape[1] - 1), axis=1)
            first = (images, found, distance, targets)
            _, found, distance, _ = jax.lax.fori_loop(0, self.steps, step, first)
            return (found, distance), None

        begin = (images, jnp.where(wrong, 0.0, jnp.inf))
        targets = jnp.arange(self.restarts)
        (found, distance), _ = jax.lax.scan(towards, begin, targets)
        return found, distance


def _wide(x):
    return x[:, None, None, None]
