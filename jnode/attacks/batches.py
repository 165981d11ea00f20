"""Some of the samples, in batches of one size."""

import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, PRNGKeyArray

from jnode._batches import gathered
from jnode.attacks.base import AbstractAttack
from jnode.attacks.one_batch import check_budget, perturb, predict

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
