"""What every attack can do."""

import abc
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

Images = Float[Array, "batch height width channels"]
Classifier = Callable[[Images], Float[Array, "batch classes"]]
Norm = Literal["linf", "l2"]
NORMS = ("linf", "l2")


class Batched(eqx.Module):
    """A model of one image, as a classifier of batches that `jax.jit` takes as data."""

    model: Callable

    def __call__(self, images: Images) -> Float[Array, "batch classes"]:
        """Logits of each image: by the model's own `batch`, else by `jax.vmap`."""
        batch = getattr(self.model, "batch", None)
        return jax.vmap(self.model)(images) if batch is None else batch(images)


class AbstractAttack(eqx.Module):
    r"""A search for an image within $\epsilon$ that is classified wrongly.

    `epsilon` is an array, so that another budget compiles nothing anew; `steps` is an
    integer or an array of one.
    """

    name: eqx.AbstractClassVar[str]
    epsilon: eqx.AbstractVar[Float[Array, ""]]
    norm: eqx.AbstractVar[str]
    steps: eqx.AbstractVar[int | Int[Array, ""]]
    restarts: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(
        self,
        model: Classifier,
        images: Images,
        labels: Int[Array, " batch"],
        *,
        key: PRNGKeyArray,
    ) -> Images:
        r"""Attacked images, each in [0, 1] and within `epsilon` of its original.

        **Arguments:**

        - `model`: any map from a batch of images to logits; it is differentiated as it
            is, solver and all.
        - `images`: with pixels in [0, 1].
        - `labels`: the true classes. For an image that the model gets wrong anyway the
            result is some image in the budget.
        - `key`: of the random starts; the same key gives the same images.
        """


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


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """The cross-entropy of each sample."""
    true = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - true


def loss_and_gradient(
    model: Classifier, images: Images, labels: Int[Array, " batch"]
) -> tuple[Float[Array, " batch"], Float[Array, "batch classes"], Images]:
    """Each sample's cross-entropy, logits, and gradient with respect to its image."""

    def total(images):
        logits = model(images)
        losses = cross_entropy(logits, labels)
        return jnp.sum(losses), (losses, logits)

    grad, (losses, logits) = jax.grad(total, has_aux=True)(images)
    return losses, logits, grad
