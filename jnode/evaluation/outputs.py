"""Whether outputs are such that attacks can be trusted (the flags of AutoAttack)."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jnode.attacks.base import loss_and_gradient

ZERO_GRADIENTS = 0.01
"""The share of images without a gradient above which there is a flag."""
LEAST_CLASSES = 4
"""Fewer leave no targeted loss, and with fewer than 3 no DLR loss."""


class Outputs:
    """Looks at the outputs for one batch after another; `result` tells what was seen.

    Random outputs, zero gradients, probabilities in place of logits, too few classes
    (Croce et al., RobustBench, 2021; the flags of AutoAttack), and logits that are not
    finite.
    """

    def __init__(self):
        # Traced a second time: a model that draws its noise in Python differs then.
        self._again = eqx.filter_jit(lambda model, images: model(images))
        self._found: list[dict[str, np.ndarray]] = []
        self._classes = 0

    def look(self, model: Callable, images, labels, mask) -> None:
        """Looks at one batch; `mask` is false at samples that only fill it up."""
        found = jax.device_get(_look(model, images, labels))
        again = np.asarray(self._again(model, images))
        self._classes = again.shape[1]
        scale = max(1.0, float(np.max(np.abs(again), initial=0.0)))
        difference = np.abs(found.pop("logits") - again)
        # NaN equals NaN here: it is counted by itself.
        found["random"] = np.nanmax(difference, axis=1, initial=0.0) > 1e-5 * scale
        self._found.append({k: v[mask] for k, v in found.items()})

    def result(self) -> dict[str, Any]:
        """Shares of the images seen, the number of classes, words and flags."""
        seen = {k: np.concatenate([f[k] for f in self._found]) for k in self._found[0]}
        random, vanishing, not_finite = (
            float(seen[k].mean()) for k in ("random", "vanishing", "not_finite")
        )
        softmax = bool(seen["probability"].all())
        flags = []
        if random > 0:
            flags.append(
                f"random output: two evaluations of the same image differ at "
                f"{random:.1%} of the images; attack the expectation over the noise."
            )
        if vanishing > ZERO_GRADIENTS:
            flags.append(
                f"zero gradients: the loss has none at {vanishing:.1%} of the images, "
                "so attacks that follow it are blind there."
            )
        if softmax:
            flags.append(
                "softmax outputs: the rows are probabilities and not logits, whose "
                "losses go flat; leave the softmax out."
            )
        if not_finite > 0:
            flags.append(
                f"non-finite logits: at {not_finite:.1%} of the images; they count as "
                "misclassified."
            )
        if self._classes < LEAST_CLASSES:
            flags.append(
                f"too few classes: {self._classes}, so targeted losses (at least 4) "
                "and the DLR loss (at least 3) cannot be had."
            )
        return {
            "random": random,
            "zero_gradients": vanishing,
            "softmax": softmax,
            "non_finite": not_finite,
            "classes": self._classes,
            "num_examples": len(seen["random"]),
            "says": f"Of {len(seen['random'])} clean images, {random:.1%} were given "
            f"other logits when asked again, {vanishing:.1%} have no gradient, "
            f"{not_finite:.1%} have logits that are not finite; the outputs "
            f"{'are' if softmax else 'are not'} probabilities; {self._classes} "
            "classes.",
            "flags": flags,
        }


@eqx.filter_jit
def _look(model, images, labels):
    _, logits, gradient = loss_and_gradient(model, images, labels)
    finite = jnp.all(jnp.isfinite(logits), axis=1)
    inside = (logits >= 0) & (logits <= 1)
    return {
        "logits": logits,
        # Where there are no logits a gradient is not missed.
        "vanishing": jnp.all(gradient == 0, axis=(1, 2, 3)) & finite,
        "not_finite": ~finite,
        "probability": jnp.all(inside, axis=1)
        & (jnp.abs(jnp.sum(logits, axis=1) - 1) < 1e-4),
    }
