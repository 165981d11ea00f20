"""Attacks one after another, each on the samples that still stand."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, PRNGKeyArray
from tqdm import tqdm

from jnode._batches import gathered
from jnode.attacks.base import AbstractAttack
from jnode.attacks.batches import attack_parts, predict
from jnode.attacks.inputs import Classes, check_input

STANDING, MISCLASSIFIED = -1, -2


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """What `run` found.

    - `adversarial`: of each sample an image that is misclassified, if one was found;
        else the clean image.
    - `broken_by`: the index of the attack that broke it, `STANDING` (-1) if none did,
        `MISCLASSIFIED` (-2) if its clean image was wrong already.
    - `seconds`: that each attack took, compilation included.
    """

    adversarial: Float[np.ndarray, "n height width channels"]
    broken_by: Int[np.ndarray, " n"]
    seconds: tuple[float, ...]

    @property
    def standing(self) -> Bool[np.ndarray, " n"]:
        """Which samples no attack broke."""
        return self.broken_by == STANDING

    @property
    def robust_accuracy(self) -> float:
        """The share of samples that stand: the worst case over all attacks.

        NaN where there are no samples.
        """
        return float(self.standing.mean()) if len(self.standing) else math.nan

    def robust_accuracies(self) -> list[float]:
        """The share that is left after each attack in turn, never growing."""
        counts = [np.sum(self.broken_by == i) for i in range(len(self.seconds))]
        left = np.sum(self.broken_by != MISCLASSIFIED) - np.cumsum(counts)
        n = len(self.broken_by)
        return [float(count / n) if n else math.nan for count in left]


def run(
    model: Callable,
    images: ArrayLike,
    labels: Classes,
    attacks: Sequence[AbstractAttack],
    *,
    key: PRNGKeyArray,
    batch_size: int = 250,
    progress: bool = True,
) -> Ensemble:
    """Attacks each sample until an attack breaks it or all have failed.

    An attack's restarts and targets count as attacks of their own here. Standing
    samples are gathered into full batches of one size, the last filled up by repeating
    some of them: one compilation an attack, memory bounded by the batch, no work on
    samples that are broken. Where less than a batch stands, smaller ones are taken.

    **Arguments:**

    - `model`: a map from a batch of images to logits (a model of single images wrapped
        in `jnode.batched`, a random one in `RandomModel`).
    - `images`: [n, height, width, channels], float32 or float64, in [0, 1]. They are
        attacked in float32 unless JAX is in its 64-bit mode.
    - `labels`: [n], the true classes as integers.
    - `attacks`: in order, for example `autoattack(8 / 255)`.
    - `key`: of the attacks' random numbers; the same gives the same result.
    - `batch_size`: images at a time.
    - `progress`: whether to draw a progress bar.

    **Returns:** an `Ensemble`; its images lie in [0, 1], within the attacks' budgets.

    **Raises:** `TypeError` and `ValueError` for bad images or labels; `ValueError` for
    a bad batch size, or a model of too few classes for an attack; `RuntimeError` for
    an attack that leaves its budget.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    images, labels = (np.asarray(x) for x in check_input(images, labels))
    labels = labels.astype(int)
    # Float64 in JAX's 64-bit mode alone.
    images = images.astype(jax.dtypes.canonicalize_dtype(images.dtype))
    if len(labels) == 0:
        return Ensemble(images, np.zeros(0, int), (0.0,) * len(attacks))
    length = min(batch_size, len(labels))

    adversarial = images.copy()
    broken_by = np.full(len(labels), STANDING)
    for chosen, x, _, mask in gathered(images, labels, np.arange(len(labels)), length):
        wrong = np.asarray(predict(model, x))[mask] != labels[chosen]
        broken_by[chosen[wrong]] = MISCLASSIFIED
    parts = sum(len(attack.parts()) for attack in attacks)
    seconds = []
    with tqdm(total=parts, disable=not progress, unit="part") as bar:
        for i, attack in enumerate(attacks):
            start = time.perf_counter()
            samples = np.flatnonzero(broken_by == STANDING)
            for _, left, batches in attack_parts(
                attack,
                model,
                images,
                labels,
                samples,
                key=jax.random.fold_in(key, i),
                length=length,
            ):
                bar.set_description(f"{attack.name}, {len(left)} stand")
                for chosen, found, classes in batches:
                    hit = classes != labels[chosen]
                    adversarial[chosen[hit]] = found[hit]
                    broken_by[chosen[hit]] = i
                bar.update()
            seconds.append(time.perf_counter() - start)
    return Ensemble(adversarial, broken_by, tuple(seconds))
