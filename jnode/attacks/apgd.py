"""Auto-PGD: gradient steps that shorten by themselves (Croce & Hein, 2020 and 2021)."""

import abc
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jnode.attacks.base import AbstractAttack, count_field
from jnode.attacks.budget import Budget, random_direction
from jnode.attacks.goals import AbstractGoal
from jnode.attacks.losses import (
    Classifier,
    Images,
    Logits,
    loss_and_gradient,
    targeted_ratio,
)
from jnode.attacks.norms import choose, wide

# Momentum: a step is 3/4 of its own direction and 1/4 of the step before.
MOMENTUM = 0.25
# The step length stays if at least this fraction of steps raised the loss.
RHO = 0.75

# In L1: the fraction of pixels that the first steps move, and that of the pixels
# changed so far which later steps move.
FIRST_FRACTION, FRACTION = 0.05, 2 / 3
# Changed pixels become fewer if at most this fraction of them is left.
FEWER = 0.95
# The step length is divided by the first number, but never below epsilon divided by the
# second.
SHORTER, SHORTEST = 1.5, 10


def checkpoints(steps: int) -> Int[np.ndarray, " steps"]:
    """For each step the number of steps that the checkpoint after it covers; 0 for
    none.

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


class AbstractAPGD(AbstractAttack):
    """Gradient ascent with momentum, whose step halves when it no longer helps.

    The step starts at twice epsilon. At checkpoints a sample's step halves, and it goes
    back to its best point, if the loss grew in at most 75 % of the steps since the last
    one, or if neither step nor best loss changed since.

    In L1 there is no momentum, and steps move few pixels: at every checkpoint, two
    thirds as many as the best point so far has changed. While these become fewer, the
    step has length epsilon and goes on from the best point; else it shortens.

    Each restart runs for the samples on which no earlier one succeeded; if none
    succeeds, the image with the largest loss is returned. The attack stops when it has
    succeeded on the whole batch.
    """

    steps: int = count_field("steps", 100)

    @abc.abstractmethod
    def loss(
        self,
        logits: Logits,
        goal: AbstractGoal,
        clean: Logits,
        restart: Int[Array, ""],
    ) -> Float[Array, " batch"]:
        """The loss that a restart maximises, from the logits and those of the clean
        images."""

    def search(self, model, images, goal, clean, budget, *, key):
        def restart(carry, this):
            _, done, highest = carry
            index, key = this
            climb = _Climb(self, model, images, goal, clean, budget, index)
            climbed, success, loss = climb.run(done, key)
            better = ~done & (success | (loss > highest))
            return choose(better, (climbed, success, loss), carry), None

        lowest = jnp.full(len(images), -jnp.inf, clean.dtype)
        first = (images, goal.reached(clean), lowest)
        restarts = self.first + jnp.arange(self.restarts, dtype=jnp.int32)
        each = (restarts, jr.split(key, self.restarts))
        (found, _, _), _ = jax.lax.scan(restart, first, each)
        return found


class _State(NamedTuple):
    """The state of each sample in a restart.

    `best` is the image with the largest loss, with its gradient and loss; `met` is the
    first adversarial image and whether there was one. `best_then` is the largest loss
    at the last checkpoint, where the step was or was not halved; `grew` counts the
    steps since then in which the loss grew. In L1, `fraction` is that of the pixels
    which a step moves, and `changed_then` that of the pixels which the best image had
    changed at the last checkpoint.
    """

    step: Int[Array, ""]
    key: PRNGKeyArray
    x: Images
    before: Images
    gradient: Images
    length: Float[Array, " batch"]
    last: Float[Array, " batch"]
    best: tuple[Images, Images, Float[Array, " batch"]]
    met: tuple[Images, Bool[Array, " batch"]]
    grew: Int[Array, " batch"]
    best_then: Float[Array, " batch"]
    halved_then: Bool[Array, " batch"]
    fraction: Float[Array, " batch"]
    changed_then: Float[Array, " batch"]


class _Climb(NamedTuple):
    """One restart of an attack."""

    attack: AbstractAPGD
    model: Classifier
    images: Images
    goal: AbstractGoal
    clean: Logits
    budget: Budget
    restart: Int[Array, ""]

    def run(
        self, done: Bool[Array, " batch"], key: PRNGKeyArray
    ) -> tuple[Images, Bool[Array, " batch"], Float[Array, " batch"]]:
        """For each sample an adversarial image, or else the one with the largest loss;
        whether it is adversarial; and the largest loss. It stops when every sample that
        was not `done` before has an adversarial image."""
        steps = self.attack.steps
        schedule = checkpoints(steps)
        windows = jnp.asarray(schedule)
        enough = jnp.asarray(np.floor(RHO * schedule).astype(int))

        def step(state):
            i, state = state.step, self.moved(state)
            if self.budget.norm == "l1":
                return self.sparser(state, (i + 1) % max(int(0.04 * steps), 1) == 0)
            return self.halved(state, windows[i] > 0, enough[i])

        def going(state):
            return (state.step < steps) & ~jnp.all(done | state.met[1])

        end = jax.lax.while_loop(going, step, self.begin(key))
        found = jnp.where(wide(end.met[1]), end.met[0], end.best[0])
        return found, end.met[1], end.best[2]

    def begin(self, key: PRNGKeyArray) -> _State:
        """A random start on the ball's surface, as in the original."""
        images, epsilon = self.images, self.budget.epsilon
        keys = jr.split(key, 3)
        noise = random_direction(images, self.budget.norm, keys[0])
        start = self.budget.project(images + wide(epsilon) * noise, images)
        losses, success, gradient = self.evaluate(start, keys[1])
        n, ones = len(images), jnp.ones_like(epsilon)
        return _State(
            step=jnp.zeros((), jnp.int32),
            key=keys[2],
            x=start,
            before=start,
            gradient=gradient,
            length=epsilon if self.budget.norm == "l1" else 2 * epsilon,
            last=losses,
            best=(start, gradient, losses),
            met=(start, success),
            grew=jnp.zeros(n, int),
            best_then=losses,
            halved_then=jnp.ones(n, bool),
            fraction=FIRST_FRACTION * ones,
            changed_then=ones,
        )

    def evaluate(self, x: Images, key: PRNGKeyArray) -> tuple[Any, ...]:
        """Each sample's loss, whether it is adversarial, and the gradient."""
        losses, logits, gradient = loss_and_gradient(
            self.model,
            x,
            lambda logits: self.attack.loss(
                logits, self.goal, self.clean, self.restart
            ),
            key=key,
        )
        # A NaN is no direction.
        losses = jnp.nan_to_num(losses, nan=-jnp.inf)
        return losses, self.goal.reached(logits), gradient

    def moved(self, state: _State) -> _State:
        """One step with momentum, except in the first step and in L1."""
        key, this = jr.split(state.key)
        x, budget = state.x, self.budget
        ahead = budget.step(
            x, state.gradient, state.length, self.images, state.fraction
        )
        if budget.norm != "l1":
            momentum = jnp.where(state.step > 0, MOMENTUM, 0.0)
            ahead = x + (1 - momentum) * (ahead - x) + momentum * (x - state.before)
            ahead = budget.project(ahead, self.images)
        losses, success, gradient = self.evaluate(ahead, this)
        return state._replace(
            step=state.step + 1,
            key=key,
            x=ahead,
            before=x,
            gradient=gradient,
            last=losses,
            best=choose(losses > state.best[2], (ahead, gradient, losses), state.best),
            met=choose(success & ~state.met[1], (ahead, success), state.met),
            grew=state.grew + (losses > state.last).astype(int),
        )

    def halved(
        self, state: _State, checking: Bool[Array, ""], enough: Int[Array, ""]
    ) -> _State:
        """At a checkpoint, halves the step and returns to the best point if needed."""
        stuck = state.grew <= enough
        stuck |= ~state.halved_then & (state.best_then >= state.best[2])
        halve = stuck & checking
        return self.returned(state, halve)._replace(
            length=jnp.where(halve, state.length / 2, state.length),
            grew=jnp.where(checking, 0, state.grew),
            best_then=jnp.where(checking, state.best[2], state.best_then),
            halved_then=jnp.where(checking, halve, state.halved_then),
        )

    def sparser(self, state: _State, checking: Bool[Array, ""]) -> _State:
        """At a checkpoint in L1, the fraction of pixels and the length of later
        steps."""
        epsilon = self.budget.epsilon
        changed = (state.best[0] != self.images).mean((1, 2, 3), epsilon.dtype)
        fewer = changed < FEWER * state.changed_then
        shorter = jnp.maximum(state.length / SHORTER, epsilon / SHORTEST)
        length = jnp.where(fewer, epsilon, shorter)
        return self.returned(state, fewer & checking)._replace(
            length=jnp.where(checking, length, state.length),
            fraction=jnp.where(checking, FRACTION * changed, state.fraction),
            changed_then=jnp.where(checking, changed, state.changed_then),
        )

    def returned(self, state: _State, back: Bool[Array, " batch"]) -> _State:
        """The state with the best image in the place of the last, where wanted."""
        return state._replace(
            x=jnp.where(wide(back), state.best[0], state.x),
            gradient=jnp.where(wide(back), state.best[1], state.gradient),
        )


class APGDCE(AbstractAPGD):
    """Auto-PGD on the cross-entropy."""

    name: ClassVar[str] = "apgd-ce"

    def loss(self, logits, goal, clean, restart):
        return goal.loss(logits)


class APGDDLR(AbstractAPGD):
    """Auto-PGD on the difference of logits ratio, or on its targeted form."""

    name: ClassVar[str] = "apgd-dlr"
    least_classes: ClassVar[int] = 3

    def loss(self, logits, goal, clean, restart):
        return goal.ratio(logits)


class APGDT(AbstractAPGD):
    """Targeted Auto-PGD: each restart moves towards the next likely class.

    `restarts` is the number of targets, the classes of the largest clean logits after
    the predicted one: 9 in AutoAttack. If the call gives targets, each restart is a
    random start towards these.
    """

    name: ClassVar[str] = "apgd-t"
    least_classes: ClassVar[int] = 4
    restarts: int = count_field("restarts", 9)

    def loss(self, logits, goal, clean, restart):
        target = goal.target(clean, restart)
        return targeted_ratio(logits, goal.rival(logits), target)
