"""What every attack can do."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jnode.attacks.inputs import Classes, check_input
from jnode.attacks.random_model import over_draws

Images = Float[Array, "batch height width channels"]
Logits = Float[Array, "batch classes"]
Labels = Int[Array, " batch"]
Classifier = Callable[[Images], Logits]
Norm = Literal["linf", "l2"]
NORMS = ("linf", "l2")


class AbstractAttack(eqx.Module):
    r"""A search for an image within $\epsilon$ that is classified wrongly.

    `epsilon` is an array, so that another budget compiles nothing anew; `steps` is an
    integer or an array of one.

    Labels never leak: an image whose prediction differs from its label, be it the
    model's mistake or a wrong label, is broken already and comes back untouched,
    whatever the attack.
    """

    name: eqx.AbstractClassVar[str]
    epsilon: eqx.AbstractVar[Float[Array, ""]]
    norm: eqx.AbstractVar[str]
    steps: eqx.AbstractVar[int | Int[Array, ""]]
    restarts: eqx.AbstractVar[int]
    least_classes: ClassVar[int] = 2
    via: ClassVar[str] = ""
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
        return compiled(_attack, self, model, images, labels, key)

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

    def evaluations(self) -> tuple[int, int]:
        """How often it asks for logits alone and for gradients, at most."""
        return 1, self.restarts * (int(self.steps) + 1)

    def parts(self) -> Sequence["AbstractAttack"]:
        """The same attack cut into restarts (or targets), to be run one after another.

        Samples that one part breaks need not be given to the next. All parts compile to
        one program.
        """
        return (self,)


class _AsImages(eqx.Module):
    """A classifier whose logits have the dtype of its images."""

    model: Callable

    def __call__(self, images):
        return self.model(images).astype(images.dtype)


def as_input(images: ArrayLike, labels: Classes) -> tuple[Images, Int[Array, " batch"]]:
    """Checked images and labels (`check_input`) as JAX's arrays."""
    images, labels = check_input(images, labels)
    return jnp.asarray(images), jnp.asarray(labels).astype(int)


def of_one_dtype(attack: Any, model: Classifier, images: Images) -> tuple[Any, Any]:
    """The attack and the model such that epsilon and logits have the images' dtype."""
    epsilon = jnp.asarray(attack.epsilon).astype(images.dtype)
    return eqx.tree_at(lambda a: a.epsilon, attack, epsilon), _AsImages(model)


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


def _attack(attack, model, images, labels, key):
    attack, model = of_one_dtype(attack, model, images)
    clean = model(images)
    if clean.shape[1] < attack.least_classes:
        raise ValueError(
            f"{attack.name} needs a model of at least {attack.least_classes} classes, "
            f"not {clean.shape[1]}."
        )
    found = attack.search(model, images, labels, clean, key=key)
    return jnp.where(wide(misclassified(clean, labels)), images, found)


def check_budget(
    epsilon: float, norm: str, *, steps: int = 1, restarts: int = 1
) -> Float[Array, ""]:
    """`epsilon` as an array; `ValueError` for a budget that makes no sense."""
    if not 0 <= epsilon < float("inf"):
        raise ValueError(f"epsilon must be at least 0 and finite, not {epsilon!r}.")
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, not {norm!r}.")
    for name, count in (("steps", steps), ("restarts", restarts)):
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be an integer of at least 1, not {count!r}.")
    return jnp.asarray(epsilon, jnp.float32)


def wide(per_sample: Array) -> Array:
    """One number a sample, ready to meet images."""
    return per_sample[:, None, None, None]


def choose(mask: Bool[Array, " batch"], new: Any, old: Any) -> Any:
    """Sample by sample, one of two trees of images and numbers."""

    def pick(a, b):
        return jnp.where(wide(mask) if a.ndim == 4 else mask, a, b)

    return jax.tree.map(pick, new, old)


def misclassified(logits: Logits, labels: Labels) -> Bool[Array, " batch"]:
    """Which images are misclassified: those whose largest logit is not the label's.

    Logits that are not finite count as misclassified.
    """
    finite = jnp.all(jnp.isfinite(logits), axis=1)
    predicted = jnp.argmax(logits, axis=1)
    return (predicted != labels.astype(predicted.dtype)) | ~finite


def cross_entropy(logits: Logits, labels: Labels) -> Float[Array, " batch"]:
    """The cross-entropy of each sample."""
    true = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - true


def loss_and_gradient(
    model: Classifier,
    images: Images,
    labels: Labels,
    *,
    loss: Callable[[Logits, Labels], Float[Array, " batch"]] = cross_entropy,
    key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, " batch"], Logits, Images]:
    """Each sample's loss, logits, and gradient with respect to its image.

    All are of the images' dtype, whatever that of the model's logits. Where the model
    is or holds a `RandomModel` they are means over its draws, from `key` if there is
    one. What is not finite in a gradient becomes 0.
    """

    def of(classifier):
        def total(images):
            logits = classifier(images).astype(images.dtype)
            losses = loss(logits, labels)
            return jnp.sum(losses), (losses, logits)

        gradient, (losses, logits) = jax.grad(total, has_aux=True)(images)
        return losses, logits, jnp.where(jnp.isfinite(gradient), gradient, 0)

    return over_draws(model, of, key)


def likely(clean: Logits, rank: Int[Array, ""]) -> Labels:
    """The class of the largest clean logit after the predicted one, at `rank` 0.

    With fewer classes than ranks they come round again.
    """
    order = jnp.argsort(-clean, axis=1)
    return jnp.take(order, 1 + rank % (clean.shape[1] - 1), axis=1)


def one_by_one(attack: Any) -> tuple[Any, ...]:
    """An attack of several restarts as several of one, each knowing its `first`."""
    single = type(attack)(
        float(attack.epsilon), norm=attack.norm, steps=int(attack.steps), restarts=1
    )
    if not hasattr(attack, "first"):
        return (single,) * attack.restarts
    return tuple(
        eqx.tree_at(lambda a: a.first, single, attack.first + i)
        for i in range(attack.restarts)
    )
