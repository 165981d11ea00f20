"""Robust accuracy once more, from the images that were stored."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jnode._batches import gathered
from jnode.attacks.base import AbstractAttack
from jnode.attacks.one_batch import check_budget, predict
from jnode.evaluation.attacked import Attacked


def recheck(
    model: Callable,
    images: Float[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, " n"],
    attacks: Sequence[AbstractAttack],
    attacked: Sequence[Attacked],
    *,
    batch_size: int = 250,
) -> dict[str, Any]:
    """Classifies every stored image anew, and checks [0, 1] and its budget anew.

    **Arguments:** a map from a batch of images to logits; the clean images and labels;
    the attacks and what each did; images at a time.

    **Returns:** how many images are stored and how many of them are misclassified, the
    share that stands by them after each attack; words, and a flag where a stored image
    proves nothing.

    **Raises:** `RuntimeError` for an image outside [0, 1] or its budget.
    """
    length = min(batch_size, len(labels))
    right = np.zeros(len(labels), bool)
    for chosen, x, _, mask in gathered(images, labels, np.arange(len(labels)), length):
        right[chosen] = np.asarray(predict(model, x))[mask] == labels[chosen]
    stored, proven, left = 0, 0, []
    for attack, found in zip(attacks, attacked, strict=True):
        fallen = np.zeros(len(labels), bool)
        all_ = np.arange(len(found.broken))
        for here, x, y, mask in gathered(
            found.images, labels[found.broken], all_, length
        ):
            clean = jnp.asarray(images[np.resize(found.broken[here], length)])
            check_budget(attack, clean, x)
            wrong = (np.asarray(predict(model, x)) != np.asarray(y))[mask]
            fallen[found.broken[here[wrong]]] = True
        stored, proven = stored + len(all_), proven + int(fallen.sum())
        stands = np.zeros(len(labels), bool)
        stands[found.samples] = True
        left.append(int((right & stands & ~fallen).sum()))
    flags = []
    if proven < stored:
        flags.append(
            f"stored images: {stored - proven} of {stored} attacked images that were "
            "misclassified are not when asked again."
        )
    return {
        "stored": stored,
        "misclassified": proven,
        "standing": left,
        "says": f"{stored} attacked images are stored; asked again, {proven} are "
        "misclassified, and all lie in [0, 1] and within their budgets.",
        "flags": flags,
    }
