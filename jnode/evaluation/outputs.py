"""What in outputs and results says that attacks cannot be trusted."""

from collections.abc import Callable, Sequence
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


POINTS = 0.002
"""RobustBench's allowance: black-box or transferred images may break 0.2 points more
of the samples than the white-box attacks before them."""
IMAGES = 2
"""And so many images, however few are evaluated."""


def weak_beats_strong(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One step, or few, beats many (Athalye et al., 2018; Carlini et al., 2019).

    Rows of attacks that ran on all samples.
    """
    flags = []
    for strong in (r for r in rows if r["name"] == "pgd" and not r["via"]):
        for weak in rows:
            same = weak["norm"] == strong["norm"] and not weak["via"]
            if not same or weak["epsilon"] > strong["epsilon"]:
                continue
            fewer = weak["name"] == "pgd" and weak["steps"] < strong["steps"]
            if weak["name"] != "fgsm" and not fewer:
                continue
            gap = strong["robust_accuracy"] - weak["robust_accuracy"]
            if gap > 0.01:
                flags.append(
                    f"masked gradients: {weak['name']}-{weak['steps']} at "
                    f"{weak['norm']} {weak['epsilon']:g} breaks {gap:.1%} more samples "
                    f"than {strong['name']}-{strong['steps']} at {strong['epsilon']:g}."
                )
    return flags


def beaten_white_box(
    rows: Sequence[dict[str, Any]], num_examples: int, *, successive: bool
) -> list[str]:
    """Black-box or transferred images break what white-box attacks could not.

    Where attacks ran one after another, what counts is what each broke of the samples
    that stood; else how far its accuracy lies below the best white-box attack's.
    """
    flags = []
    allowed = max(POINTS * num_examples, IMAGES)
    for i, row in enumerate(rows):
        if row["name"] != "square" and not row["via"]:
            continue
        white = [
            r
            for j, r in enumerate(rows)
            if (r["norm"], r["epsilon"]) == (row["norm"], row["epsilon"])
            and r["name"] not in ("square", "fgsm")
            and not r["via"]
            and (j < i or not successive)
        ]
        if not white:
            continue
        more = row["broken"]
        if not successive:
            best = min(r["robust_accuracy"] for r in white)
            more = round(num_examples * (best - row["robust_accuracy"]))
        if more > allowed:
            kind = f"transfer via {row['via']}" if row["via"] else row["name"]
            flags.append(
                f"{'transfer' if row['via'] else 'square'} beats white-box: "
                f"{kind} at {row['norm']} {row['epsilon']:g} breaks {more} of "
                f"{num_examples} images more than the attacks that follow the model's "
                "gradient."
            )
    return flags
