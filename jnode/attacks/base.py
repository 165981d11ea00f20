"""The interface of attacks."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PRNGKeyArray

from jnode.attacks.budget import Budget
from jnode.attacks.goals import AbstractGoal
from jnode.attacks.inputs import Classes, as_input, check_ranges
from jnode.attacks.losses import AsImages, Classifier, Images, Logits
from jnode.attacks.norms import wide


def as_count(name: str) -> Callable[[int], int]:
    """A converter of the field `name` that raises unless it is an integer of at least
    1."""

    def convert(count):
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be an integer of at least 1, not {count!r}.")
        return count

    return convert


def count_field(name: str, default: int) -> Any:
    """A static count, given by keyword; another value recompiles."""
    return eqx.field(
        default=default, static=True, kw_only=True, converter=as_count(name)
    )


class AbstractAttack(eqx.Module):
    r"""An algorithm that searches for an image with another prediction.

    The `Budget`, which limits the perturbation, is an argument of the call. An attack
    is untargeted unless the call has `targets`.

    **Arguments:**

    - `steps`: the number of steps or, for black-box attacks, queries.
    - `restarts`: the number of random starts, or of targets; `first` is the number of
        the first one, if the attack is one of the `parts` of another.

    **Raises:** `ValueError` for a number below 1.
    """

    name: eqx.AbstractClassVar[str]
    least_classes: ClassVar[int] = 2
    steps: int | Int[Array, ""] = count_field("steps", 1)
    restarts: int = count_field("restarts", 1)
    first: Int[Array, ""] = eqx.field(
        default=0, init=False, converter=lambda i: jnp.asarray(i, jnp.int32)
    )
    via: str = eqx.field(default="", init=False, static=True)
    """The surrogate model that a transferred attack uses, or `None`."""

    def __call__(
        self,
        model: Classifier,
        images: ArrayLike,
        labels: Classes,
        budget: Budget,
        *,
        targets: Classes | None = None,
        key: PRNGKeyArray,
    ) -> Images:
        r"""The attacked images, each in [0, 1] and within the budget of its original.

        An image for which the goal is already reached is returned unchanged, so that
        labels never leak: without targets a misclassified image (whether the model or
        the label is wrong), with targets an image that is predicted as its target.

        It is compiled once for each model, attack, norm and shape; another epsilon does
        not recompile. Neither do new arrays in a model that is an `equinox.Module`, but
        a function that is defined again for each call is a new model each time.

        **Arguments:**

        - `model`: any map from a batch of images to logits; it is differentiated as it
            is, including its solver. Wrap a model of one image in `jnode.batched`, and
            one that draws random numbers in `RandomModel`. Logits are cast to the dtype
            of the images.
        - `images`: [batch, height, width, channels], float32 or (in JAX's 64-bit mode)
            float64, with pixels in [0, 1]; the batch may be empty.
        - `labels`: [batch], the true classes as integers.
        - `budget`: the norm and epsilon, for example `Budget("linf", 8 / 255)`; epsilon
            may be an array, one value for each image.
        - `targets`: [batch], a class for each image other than its label. With targets
            the attack succeeds on an image if the prediction is its target.
        - `key`: of the random starts; the same key gives the same images.

        **Returns:** images of the shape and dtype of the given ones.

        **Raises:** `TypeError` for images, labels, targets or a budget of another type;
        `ValueError` for another shape, for pixels outside [0, 1], classes that the
        model does not have, or targets that equal the label (none of which can be
        checked while JAX traces the call), and for a model with too few classes or one
        of single images.
        """
        images, goal = as_input(images, labels, targets)
        budget = check_budget(budget).of_each(images)
        if len(images) == 0:
            return images
        found, clean = compiled(_attack, self, model, images, goal, None, budget, key)
        check_ranges(labels, targets, clean.shape[1])
        return found

    @abc.abstractmethod
    def search(
        self,
        model: Classifier,
        images: Images,
        goal: AbstractGoal,
        clean: Logits,
        budget: Budget,
        *,
        key: PRNGKeyArray,
    ) -> Images:
        """The attacked images; those for which the goal was already reached are
        discarded.

        **Arguments:** the model and images of the call; the goal, which decides when
        the attack has succeeded; the logits of the images; the budget, with an epsilon
        for each image. Images, logits and epsilon are of one dtype."""

    def parts(self) -> tuple["AbstractAttack", ...]:
        """The same attack as a sequence of single restarts (or targets).

        Images on which one part succeeds can be left out of the next. All parts share
        one compiled program.
        """
        if self.restarts == 1:
            return (self,)
        single = dataclasses.replace(self, steps=int(self.steps), restarts=1)
        return tuple(
            eqx.tree_at(lambda a: a.first, single, self.first + i)
            for i in range(self.restarts)
        )


def check_budget(budget: Budget | None) -> Budget:
    """The budget itself. **Raises:** `TypeError` if it is not a `Budget`."""
    if not isinstance(budget, Budget):
        raise TypeError(
            "budget must be a jnode.attacks.Budget, for example "
            f'Budget("linf", 8 / 255), not {type(budget).__name__}.'
        )
    return budget


# From a call to a compiled program.


def compiled(function: Callable, *arguments: Any) -> Any:
    """`function(*arguments)` as one compiled program, cached for similar calls.

    If JAX is already tracing, it becomes part of that program.
    """
    leaves = jax.tree.leaves(arguments)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return function(*arguments)
    return _compiled(function, *arguments)


# One function for all calls, since the jitted function holds the cache.
@eqx.filter_jit
def _compiled(function, *arguments):
    return function(*arguments)


def perturb(
    attack: AbstractAttack,
    model: Classifier,
    images: Images,
    goal: AbstractGoal,
    clean: Logits,
    budget: Budget,
    key: PRNGKeyArray,
) -> Images:
    """The attack on a batch with known logits, for arguments that were checked."""
    return compiled(_attack, attack, model, images, goal, clean, budget, key)[0]


def _attack(attack, model, images, goal, clean, budget, key):
    model = AsImages(model)
    clean = model(images) if clean is None else clean.astype(images.dtype)
    check_classes(attack, clean.shape[1])
    found = attack.search(model, images, goal, clean, budget, key=key)
    return jnp.where(wide(goal.reached(clean)), images, found), clean


def check_classes(attack: Any, classes: int) -> None:
    """Raises `ValueError` if the attack needs a model with more classes."""
    if classes < attack.least_classes:
        raise ValueError(
            f"{attack.name} needs a model of at least {attack.least_classes} classes, "
            f"not {classes}: leave it out."
        )
