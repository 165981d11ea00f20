"""Worst-case robust accuracy, sample by sample."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from jnode.attacks.base import AbstractAttack, loss_and_gradient
from jnode.attacks.norms import size
from jnode.data import check_images, check_labels, padded_batches

TOLERANCE = 1e-6  # by which rounding may take an image past its budget


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    - `summary`: the numbers, ready for JSON.
    - `predictions`: the class given to each clean image.
    - `standing`: per attack, which samples were right before and after it.
    - `adversarial`: per attack, the first `keep` attacked images.
    - `adversarial_predictions`: per attack, the class given to each attacked image.
    """

    summary: dict[str, Any]
    predictions: Int[np.ndarray, " n"]
    standing: list[Bool[np.ndarray, " n"]]
    adversarial: list[Float[np.ndarray, "keep height width channels"]]
    adversarial_predictions: list[Int[np.ndarray, " n"]]


@eqx.filter_jit
def _predict(model, images):
    logits = model(images)
    # NaN never counts as right: class -1 is nobody's label.
    finite = jnp.all(jnp.isfinite(logits), axis=1)
    return jnp.where(finite, jnp.argmax(logits, axis=1), -1)


@eqx.filter_jit
def _attack(attack, model, images, labels, key):
    return attack(model, images, labels, key=key)


@eqx.filter_jit
def _gradient_vanishes(model, images, labels):
    _, _, gradient = loss_and_gradient(model, images, labels)
    return jnp.all(gradient == 0, axis=(1, 2, 3))


def evaluate(
    model: Callable,
    images: ArrayLike,
    labels: ArrayLike,
    attacks: Sequence[AbstractAttack],
    *,
    batch_size: int = 250,
    seed: int = 0,
    keep: int = 16,
    progress: bool = True,
) -> Evaluation:
    """Clean accuracy, and accuracy that is left after each attack and after all.

    A sample stands if its clean image and its attacked image are classified rightly;
    attacked images are classified anew, after their budget was checked. The worst case
    of a budget counts a sample as standing only if it stands under every attack of that
    norm and of at most that epsilon.

    **Arguments:**

    - `model`: a map from a batch of images to logits; a model of single images is
        wrapped in `jnode.attacks.Batched`.
    - `images`: [n, height, width, channels], floats in [0, 1].
    - `labels`: [n], the true classes as integers.
    - `attacks`: from `jnode.attacks`.
    - `batch_size`: images at a time; the last batch is filled up.
    - `seed`: of the attacks' random numbers.
    - `keep`: how many attacked images to return.
    - `progress`: whether to draw a progress bar.

    **Returns:** an `Evaluation`. Its `summary["flags"]` names results that look like
    masked gradients.

    **Raises:** `TypeError` and `ValueError` for bad images or labels; `RuntimeError`
    for an attack that leaves its budget.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    check_images(images)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    logits = jax.eval_shape(
        model, jax.ShapeDtypeStruct((1, *images.shape[1:]), "float32")
    )
    check_labels(labels, logits.shape[1])
    if len(images) != len(labels):
        raise ValueError(
            f"images and labels must be as many, not {len(images)} and {len(labels)}."
        )
    root = jax.random.key(seed)
    batches = -(-len(images) // min(batch_size, len(images)))
    bar = tqdm(total=batches * (1 + len(attacks)), disable=not progress, unit="batch")

    def each_batch(label):
        bar.set_description(label)
        for i, (x, y, mask) in enumerate(padded_batches(images, labels, batch_size)):
            yield i, jnp.asarray(x, jnp.float32), jnp.asarray(y), mask
            bar.update()

    with bar:
        clean, vanishing = [], []
        for _, x, y, mask in each_batch("clean"):
            clean.append(np.asarray(_predict(model, x))[mask])
            vanishing.append(np.asarray(_gradient_vanishes(model, x, y))[mask])
        predictions = np.concatenate(clean)
        right = predictions == labels
        rows, standing, pictures, twins = [], [], [], []
        for number, attack in enumerate(attacks):
            start = time.perf_counter()
            after, kept = [], []
            for i, x, y, mask in each_batch(describe(attack)):
                key = jax.random.fold_in(jax.random.fold_in(root, number), i)
                adversarial = _attack(attack, model, x, y, key)
                _check_budget(attack, x, adversarial)
                after.append(np.asarray(_predict(model, adversarial))[mask])
                if i * batch_size < keep:
                    kept.append(np.asarray(adversarial)[mask])
            predicted = np.concatenate(after)
            standing.append(right & (predicted == labels))
            twins.append(predicted)
            pictures.append(np.concatenate(kept)[:keep] if kept else np.zeros(0))
            rows.append(
                {
                    "name": attack.name,
                    "norm": attack.norm,
                    "epsilon": round(float(attack.epsilon), 7),
                    "steps": int(attack.steps),
                    "restarts": attack.restarts,
                    "robust_accuracy": float(standing[-1].mean()),
                    "seconds": round(time.perf_counter() - start, 3),
                }
            )
    summary = {
        "num_examples": len(labels),
        "seed": seed,
        "clean_accuracy": float(right.mean()),
        "attacks": rows,
        "worst_case": worst_case(rows, standing),
        "flags": _flags(rows, float(np.concatenate(vanishing).mean())),
    }
    return Evaluation(summary, predictions, standing, pictures, twins)


def describe(attack: AbstractAttack) -> str:
    """For people: `pgd-40 linf 0.1`."""
    steps = f"-{int(attack.steps)}" if attack.steps > 1 else ""
    return f"{attack.name}{steps} {attack.norm} {float(attack.epsilon):.3g}"


def worst_case(
    rows: list[dict], standing: list[Bool[np.ndarray, " n"]]
) -> list[dict[str, Any]]:
    """Per norm and epsilon, the share of samples that stand under every such attack.

    An attack with a smaller budget counts for a larger one too.
    """
    budgets = sorted({(r["norm"], r["epsilon"]) for r in rows})
    worst = []
    for norm, epsilon in budgets:
        masks = [
            mask
            for row, mask in zip(rows, standing, strict=True)
            if row["norm"] == norm and row["epsilon"] <= epsilon
        ]
        accuracy = float(np.logical_and.reduce(masks).mean())
        worst.append({"norm": norm, "epsilon": epsilon, "robust_accuracy": accuracy})
    return worst


def _check_budget(attack, images, adversarial) -> None:
    low, high = float(jnp.min(adversarial)), float(jnp.max(adversarial))
    if not (low >= 0 and high <= 1):
        raise RuntimeError(f"{attack.name} left [0, 1]: {low} to {high}.")
    if attack.norm != "sigma":
        largest = float(jnp.max(size(adversarial - images, attack.norm)))
        if not largest <= float(attack.epsilon) + TOLERANCE:
            raise RuntimeError(
                f"{attack.name} left its budget of {float(attack.epsilon)}: {largest}."
            )


def _flags(rows: list[dict], vanishing: float) -> list[str]:
    """Signs of masked gradients (Athalye et al., ICML 2018; Carlini et al., 2019)."""
    flags = []
    if vanishing > 0.1:
        flags.append(
            f"zero gradients: the loss has none at {vanishing:.1%} of the images, so "
            "attacks that follow it are blind there."
        )
    for strong in (r for r in rows if r["name"] == "pgd"):
        for weak in rows:
            same = weak["norm"] == strong["norm"]
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
