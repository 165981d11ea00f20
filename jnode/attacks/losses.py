"""Predictions, losses and gradients of a classifier for attacks, averaged over draws if
it is random."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

Images = Float[Array, "batch height width channels"]
Logits = Float[Array, "batch classes"]
Labels = Int[Array, " batch"]
PerSample = Float[Array, " batch"]
Classifier = Callable[[Images], Logits]


def prediction(logits: Logits) -> Labels:
    """The class of the largest logit; -1 (no class) if a logit is not finite."""
    finite = jnp.all(jnp.isfinite(logits), axis=1)
    return jnp.where(finite, jnp.argmax(logits, axis=1).astype(int), -1)


class AsImages(eqx.Module):
    """A classifier whose logits have the dtype of its images.

    **Raises:** `ValueError` if its result is not an array with one row of logits for
    each image.
    """

    model: Callable

    def __call__(self, images):
        logits = self.model(images)
        if not eqx.is_array_like(logits):
            raise ValueError(
                f"model must return an array of logits, not {type(logits).__name__}: "
                "pick the logits of its results."
            )
        shape = jnp.shape(logits)
        if len(shape) != 2 or shape[0] != len(images):
            raise ValueError(
                "model must map a batch of images to logits, [batch, classes]: of "
                f"{len(images)} images it made an array of the shape {shape}. Wrap a "
                "model of one image in jnode.batched."
            )
        return logits.astype(images.dtype)


@eqx.filter_jit
def logits_of(model: Classifier, images: Images) -> Logits:
    """The logits of one batch, in the images' dtype; all predictions are judged by
    these."""
    return AsImages(model)(images)


def classes_of(
    logits: Logits | Float[np.ndarray, "n classes"],
) -> Int[np.ndarray, " n"]:
    """As `prediction`, in NumPy."""
    logits = np.asarray(logits)
    finite = np.all(np.isfinite(logits), axis=1)
    return np.where(finite, np.argmax(logits, axis=1), -1)


def cross_entropy(logits: Logits, labels: Labels) -> PerSample:
    """The cross-entropy of each sample."""
    return jax.nn.logsumexp(logits, axis=1) - at(logits, labels)


def margin(logits: Logits, labels: Labels) -> PerSample:
    r"""$z_y - \max_{i \ne y} z_i$, below 0 where the image is misclassified."""
    own = jnp.arange(logits.shape[1])[None] == labels[:, None]
    return at(logits, labels) - jnp.max(jnp.where(own, -jnp.inf, logits), axis=1)


def difference_of_logits_ratio(logits: Logits, labels: Labels) -> PerSample:
    r"""DLR: $-(z_y - \max_{i \ne y} z_i)/(z_{\pi_1} - z_{\pi_3})$.

    It is invariant to the scale and offset of logits, so unlike the cross-entropy it
    has a gradient even if logits are large. It needs at least 3 classes.
    """
    ordered = jnp.sort(logits, axis=1)
    true = at(logits, labels)
    wrong = ordered[:, -1] != true
    other = jnp.where(wrong, ordered[:, -1], ordered[:, -2])
    return (other - true) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def targeted_ratio(logits: Logits, labels: Labels, targets: Labels) -> PerSample:
    r"""$-(z_y - z_t)/(z_{\pi_1} - (z_{\pi_3} + z_{\pi_4})/2)$.

    **Raises:** `ValueError` for fewer than 4 classes.
    """
    if logits.shape[1] < 4:
        raise ValueError(
            "the targeted difference of logits ratio needs a model of at least 4 "
            f"classes, not {logits.shape[1]}."
        )
    ordered = jnp.sort(logits, axis=1)
    scale = ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4])
    return (at(logits, targets) - at(logits, labels)) / (scale + 1e-12)


def at(logits: Logits, index: Labels) -> PerSample:
    """Each sample's logit of this class."""
    return jnp.take_along_axis(logits, index[:, None], axis=1)[:, 0]


def loss_and_gradient(
    model: Classifier,
    images: Images,
    loss: Callable[[Logits], PerSample],
    *,
    key: PRNGKeyArray | None = None,
) -> tuple[PerSample, Logits, Images]:
    """Each sample's loss, logits, and gradient with respect to its image.

    All have the images' dtype, whatever the model's. If the model is or holds a
    `RandomModel` they are means over its draws, from `key` if it is given. Entries of a
    gradient that are not finite become 0.
    """

    def of(classifier):
        def total(images):
            logits = classifier(images).astype(images.dtype)
            losses = loss(logits)
            return jnp.sum(losses), (losses, logits)

        gradient, (losses, logits) = jax.grad(total, has_aux=True)(images)
        return losses, logits, jnp.where(jnp.isfinite(gradient), gradient, 0)

    return over_draws(model, of, key)


def next_likely(clean: Logits, rank: Int[Array, ""]) -> Labels:
    """The class of the largest clean logit after the predicted one, at `rank` 0.

    With fewer classes than ranks they repeat.
    """
    order = jnp.argsort(-clean, axis=1)
    return jnp.take(order, 1 + rank % (clean.shape[1] - 1), axis=1)


class RandomModel(eqx.Module):
    """A classifier that draws random numbers at each call, as the attacks see it.

    Gradient attacks average loss and gradient over `draws` fresh draws at every step
    (expectation over transformation; Athalye et al., ICML 2018). Logits alone are the
    mean over as many draws from `key`: the same draws at each call, so that predictions
    are reproducible.

    It may be a part of another classifier that is a PyTree, such as an
    `equinox.Module`, in which attacks find it (`over_draws`). In the closure of a plain
    Python function they cannot find it, and attack the mean of its predictions.
    """

    model: Callable
    key: PRNGKeyArray
    draws: int = eqx.field(static=True)

    def __init__(self, model: Callable, *, key: PRNGKeyArray, draws: int = 20):
        """**Arguments:** a map from a batch of images and a key to logits; the key of
        the predictions; the number of draws, at least 1 and 20 in AutoAttack.

        **Raises:** `ValueError` for another number of draws.
        """
        if not isinstance(draws, int) or draws < 1:
            raise ValueError(f"draws must be an integer of at least 1, not {draws!r}.")
        self.model, self.key, self.draws = model, key, draws

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch classes"]:
        """The mean of the logits over the draws from `self.key`."""
        return over_draws(self, lambda model: model(images))


class _Drawn(eqx.Module):
    """One draw of a random model: a classifier."""

    model: Callable
    key: PRNGKeyArray

    def __call__(self, images):
        return self.model(images, self.key)


def is_random(model: Any) -> bool:
    """Whether there is a `RandomModel` anywhere in the PyTree `model`."""
    return bool(_random_parts(model))


def over_draws(
    model: Callable,
    function: Callable[[Callable], Any],
    key: PRNGKeyArray | None = None,
) -> Any:
    """`function(model)`, or its mean over draws of each `RandomModel` in the model.

    **Arguments:** a classifier, any PyTree; a function from a classifier to arrays; the
    key of the draws, by default that of the predictions. With several random parts the
    largest number of draws is used.
    """
    parts = _random_parts(model)
    if not parts:
        return function(model)

    def of_draw(key):
        keys = iter(jr.split(key, len(parts)))
        return function(
            jax.tree.map(
                lambda x: _Drawn(x.model, next(keys)) if _is_part(x) else x,
                model,
                is_leaf=_is_part,
            )
        )

    def add(total, key):
        return jax.tree.map(jnp.add, total, of_draw(key)), None

    draws = max(part.draws for part in parts)
    keys = jr.split(parts[0].key if key is None else key, draws)
    shapes = jax.eval_shape(of_draw, keys[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    # One after another: memory does not grow with the number of draws.
    total, _ = jax.lax.scan(add, zeros, keys)
    return jax.tree.map(lambda x: x / draws, total)


def _random_parts(model):
    return [x for x in jax.tree.leaves(model, is_leaf=_is_part) if _is_part(x)]


def _is_part(x):
    return isinstance(x, RandomModel)
