"""What every attack is: a budget, and a search within it."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jnode.attacks.inputs import Classes, as_input
from jnode.attacks.losses import Classifier, Images, Labels, Logits, misclassified
from jnode.attacks.norms import NORMS, size, wide

TOLERANCE = 1e-6
"""By how much rounding may take an image past its budget."""


def _as_epsilon(epsilon):
    if not 0 <= epsilon < float("inf"):
        raise ValueError(f"epsilon must be at least 0 and finite, not {epsilon!r}.")
    return jnp.asarray(epsilon, jnp.float32)


def _as_norm(norm):
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, not {norm!r}.")
    return norm


def as_count(name: str) -> Callable[[int], int]:
    """A converter of the field `name` that refuses all but integers of at least 1."""

    def convert(count):
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be an integer of at least 1, not {count!r}.")
        return count

    return convert


def count_field(name: str, default: int) -> Any:
    """A count that decides what is compiled; given by keyword."""
    return eqx.field(
        default=default, static=True, kw_only=True, converter=as_count(name)
    )


class AbstractAttack(eqx.Module):
    r"""A search for an image within $\epsilon$ that is classified wrongly.

    Labels never leak: an image whose prediction differs from its label, be it the
    model's mistake or a wrong label, is broken already and comes back untouched,
    whatever the attack.

    **Arguments:**

    - `epsilon`: the budget in pixel units; an array, so that another one compiles
        nothing anew.
    - `norm`: the budget's: "linf" or "l2".
    - `steps`: how many steps, or queries.
    - `restarts`: how many random starts, or targets; `first` is the number of the
        first of them, where an attack is a part of another (`parts`).

    **Raises:** `ValueError` for a budget that makes no sense.
    """

    name: eqx.AbstractClassVar[str]
    least_classes: ClassVar[int] = 2
    epsilon: Float[Array, ""] = eqx.field(converter=_as_epsilon)
    norm: str = eqx.field(default="linf", static=True, kw_only=True, converter=_as_norm)
    steps: int | Int[Array, ""] = count_field("steps", 1)
    restarts: int = count_field("restarts", 1)
    first: Int[Array, ""] = eqx.field(
        default=0, init=False, converter=lambda i: jnp.asarray(i, jnp.int32)
    )
    via: str = eqx.field(default="", init=False, static=True)
    """The model that the images are made through, where it is not the one attacked."""

    def __call__(
        self,
        model: Classifier,
        images: ArrayLike,
        labels: Classes,
        *,
        key: PRNGKeyArray,
    ) -> Images:
        r"""Attacked images, each in [0, 1] and within `epsilon` of its original.

        Compiled once for each model, attack and shape: later calls, with another budget
        too, compile nothing. A model that is an `equinox.Module` may change its arrays;
        a function defined anew at each call is another model each time.

        **Arguments:**

        - `model`: any map from a batch of images to logits; it is differentiated as it
            is, solver and all. Logits of another type than the images are cast to
            theirs. A model that draws random numbers is wrapped in `RandomModel`.
        - `images`: [batch, height, width, channels], float32 or (in JAX's 64-bit mode)
            float64, with pixels in [0, 1]; the batch may be empty.
        - `labels`: [batch], the true classes as integers. An image that the model gets
            wrong anyway is returned as it is.
        - `key`: of the random starts; the same key gives the same images.

        **Returns:** images of the shape and dtype of the given ones.

        **Raises:** `TypeError` for images or labels of another dtype; `ValueError` for
        another shape, for pixels outside [0, 1] (where their values are known: not
        while JAX traces the call), or for a model of too few classes.
        """
        images, labels = as_input(images, labels)
        if len(images) == 0:
            return images
        return compiled(_attack, self, model, images, labels, None, key)

    @abc.abstractmethod
    def search(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        clean: Logits,
        *,
        key: PRNGKeyArray,
    ) -> Images:
        """As `__call__`, with the logits of the images; what it returns for images that
        are misclassified already is thrown away.

        The images, the logits of `model` and `epsilon` are of one dtype."""

    def parts(self) -> tuple["AbstractAttack", ...]:
        """The same attack cut into restarts (or targets), to be run one after another.

        Samples that one part breaks need not be given to the next. All parts compile to
        one program.
        """
        if self.restarts == 1:
            return (self,)
        single = dataclasses.replace(
            self, epsilon=float(self.epsilon), steps=int(self.steps), restarts=1
        )
        return tuple(
            eqx.tree_at(lambda a: a.first, single, self.first + i)
            for i in range(self.restarts)
        )


def describe(attack: AbstractAttack) -> str:
    """For people: `pgd-40 linf 0.1`, `pgd-40 linf 0.1 via rk4x8`."""
    steps = f"-{int(attack.steps)}" if attack.steps > 1 else ""
    through = f" via {attack.via}" if attack.via else ""
    return f"{attack.name}{steps} {attack.norm} {float(attack.epsilon):.3g}{through}"


def check_budget(attack: AbstractAttack, images: Images, adversarial: Images) -> None:
    """Raises `RuntimeError` for images outside [0, 1] or the attack's budget."""
    low, high = float(jnp.min(adversarial)), float(jnp.max(adversarial))
    if not (low >= 0 and high <= 1):
        raise RuntimeError(f"{attack.name} left [0, 1]: {low} to {high}.")
    if attack.norm in NORMS:
        largest = float(jnp.max(size(adversarial - images, attack.norm)))
        if not largest <= float(attack.epsilon) + TOLERANCE:
            raise RuntimeError(
                f"{attack.name} left its budget of {float(attack.epsilon)}: {largest}."
            )


# From a call to a compiled program.


def of_one_dtype(attack: Any, model: Classifier, images: Images) -> tuple[Any, Any]:
    """The attack and the model such that epsilon and logits have the images' dtype."""
    epsilon = jnp.asarray(attack.epsilon).astype(images.dtype)
    return eqx.tree_at(lambda a: a.epsilon, attack, epsilon), _AsImages(model)


class _AsImages(eqx.Module):
    """A classifier whose logits have the dtype of its images."""

    model: Callable

    def __call__(self, images):
        return self.model(images).astype(images.dtype)


def compiled(function: Callable, *arguments: Any) -> Any:
    """`function(*arguments)` as one program, kept for the next call of its kind.

    Where JAX is tracing already it becomes a part of that program.
    """
    leaves = jax.tree.leaves(arguments)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return function(*arguments)
    return _compiled(function, *arguments)


# One for all calls: what is compiled is kept by the jitted function.
@eqx.filter_jit
def _compiled(function, *arguments):
    return function(*arguments)


def perturb(
    attack: AbstractAttack,
    model: Classifier,
    images: Images,
    labels: Labels,
    clean: Logits,
    key: PRNGKeyArray,
) -> Images:
    """The attack on a batch whose logits are known, of images that were checked."""
    return compiled(_attack, attack, model, images, labels, clean, key)


def _attack(attack, model, images, labels, clean, key):
    attack, model = of_one_dtype(attack, model, images)
    clean = model(images) if clean is None else clean.astype(images.dtype)
    check_classes(attack, clean.shape[1])
    found = attack.search(model, images, labels, clean, key=key)
    return jnp.where(wide(misclassified(clean, labels)), images, found)


def check_classes(attack: AbstractAttack, classes: int) -> None:
    """Raises `ValueError` where the attack needs a model of more classes."""
    if classes < attack.least_classes:
        raise ValueError(
            f"{attack.name} needs a model of at least {attack.least_classes} classes, "
            f"not {classes}: leave it out."
        )
