"""One attack on batches: running it, judging what it found, sparing what it broke."""

import math
from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, PRNGKeyArray

from jnode._batches import gathered
from jnode.attacks.base import NORMS, AbstractAttack
from jnode.attacks.norms import size

TOLERANCE = 1e-6  # by which rounding may take an image past its budget


@eqx.filter_jit
def predict(model, images):
    """The class given to each image of a batch; -1, no class, where a logit is not
    finite."""
    logits = model(images)
    finite = jnp.all(jnp.isfinite(logits), axis=1)
    return jnp.where(finite, jnp.argmax(logits, axis=1), -1)


@eqx.filter_jit
def perturb(attack, model, images, labels, key):
    """One attack on one batch, compiled."""
    return attack(model, images, labels, key=key)


def check_budget(attack: AbstractAttack, images, adversarial) -> None:
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


SMALL = 32  # samples, below which a smaller batch is hardly quicker


def fitted(length: int, count: int, multiple: int = 1) -> int:
    """A batch for so many samples: `length`, or a share of it where fewer are left.

    Shares are 3/4, 1/2, 3/8 and so on, multiples of the number of devices: each is one
    more compilation, which long attacks on few samples repay.
    """
    shares = [share * 0.5**k for k in range(8) for share in (0.75, 0.5)]
    sizes = [math.ceil(share * length / multiple) * multiple for share in shares]
    return min([length, *(size for size in sizes if size >= max(count, SMALL))])


def attack_parts(
    attack: AbstractAttack,
    model: Callable,
    images: Float[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, " n"],
    samples: Int[np.ndarray, " some"],
    *,
    key: PRNGKeyArray,
    length: int,
    mesh: Mesh | None = None,
) -> Iterator[tuple[AbstractAttack, Int[np.ndarray, " left"], Iterator]]:
    """Restart by restart, or target by target: what one breaks the next is spared.

    Of each part: it, the samples that it gets, and its batches, which are to be walked
    to their end before the next part is asked for: of each, which samples they are,
    their attacked images and the classes given to these.

    **Raises:** `RuntimeError`, in a batch, for an attack that leaves its budget.
    """
    multiple = 1 if mesh is None else mesh.size
    standing = np.ones(len(labels), bool)

    def walk(part, samples, key):
        size = fitted(length, len(samples), multiple)
        batches = gathered(images, labels, samples, size, mesh)
        for i, (chosen, x, y, mask) in enumerate(batches):
            found = perturb(part, model, x, y, jax.random.fold_in(key, i))
            check_budget(part, x, found)
            classes = np.asarray(predict(model, found))[mask]
            standing[chosen] = classes == labels[chosen]
            yield chosen, np.asarray(found)[mask], classes

    for j, part in enumerate(attack.parts()):
        yield part, samples, walk(part, samples, jax.random.fold_in(key, j))
        samples = samples[standing[samples]]
