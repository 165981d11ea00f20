"""What every attack can do."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jnode.attacks.random_model import RandomModel
from jnode.models import ODEClassifier

Images = Float[Array, "batch height width channels"]
Logits = Float[Array, "batch classes"]
Labels = Int[Array, " batch"]
Classifier = Callable[[Images], Logits]
Norm = Literal["linf", "l2"]
NORMS = ("linf", "l2")


class Batched(eqx.Module):
    """A model of one image, as a classifier of batches that `jax.jit` takes as data.

    The tolerances of an `ODEClassifier`'s adaptive solver are data too: what is
    compiled for one pair of them serves all.
    """

    model: Callable
    tolerances: Float[Array, "2"] | None

    def __init__(self, model: Callable):
        self.model, self.tolerances = model, None
        if isinstance(model, ODEClassifier) and model.solver.adaptive:
            self.tolerances = jnp.asarray(model.solver.tolerances)
            solver = dataclasses.replace(model.solver, rtol=None, atol=None)
            self.model = model.with_solver(solver)

    def __call__(self, images: Images) -> Float[Array, "batch classes"]:
        """Logits of each image: by the model's own `batch`, else by `jax.vmap`."""
        model = self.model
        if self.tolerances is not None:
            tolerances = jax.lax.stop_gradient(self.tolerances)
            model = model.with_solver(model.solver.at(tolerances))
        batch = getattr(model, "batch", None)
        return jax.vmap(model)(images) if batch is None else batch(images)


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

    def __call__(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        *,
        key: PRNGKeyArray,
    ) -> Images:
        r"""Attacked images, each in [0, 1] and within `epsilon` of its original.

        **Arguments:**

        - `model`: any map from a batch of images to logits; it is differentiated as it
            is, solver and all. One that draws random numbers is wrapped in
            `RandomModel`.
        - `images`: with pixels in [0, 1].
        - `labels`: the true classes. An image that the model gets wrong anyway is
            returned as it is.
        - `key`: of the random starts; the same key gives the same images.

        **Raises:** `ValueError` for a model of too few classes.
        """
        clean = model(images)
        if clean.shape[1] < self.least_classes:
            raise ValueError(
                f"{self.name} needs a model of at least {self.least_classes} classes, "
                f"not {clean.shape[1]}."
            )
        found = self.search(model, images, labels, clean, key=key)
        return jnp.where(wide(misclassified(clean, labels)), images, found)

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
        are misclassified already is thrown away."""

    def evaluations(self) -> tuple[int, int]:
        """How often it asks for logits alone and for gradients, at most."""
        return 1, self.restarts * (int(self.steps) + 1)

    def parts(self) -> Sequence["AbstractAttack"]:
        """The same attack cut into restarts (or targets), to be run one after another.

        Samples that one part breaks need not be given to the next. All parts compile to
        one program.
        """
        return (self,)


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
    """Which predictions are not the label. Logits that are not finite never are."""
    finite = jnp.all(jnp.isfinite(logits), axis=1)
    return (jnp.argmax(logits, axis=1) != labels) | ~finite


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

    Of a `RandomModel` they are means over its draws, from `key` if there is one. What
    is not finite in a gradient becomes 0.
    """

    def of(classifier):
        def total(images):
            logits = classifier(images)
            losses = loss(logits, labels)
            return jnp.sum(losses), (losses, logits)

        gradient, (losses, logits) = jax.grad(total, has_aux=True)(images)
        return losses, logits, jnp.where(jnp.isfinite(gradient), gradient, 0)

    if isinstance(model, RandomModel):
        return model.mean(of, model.key if key is None else key)
    return of(model)
