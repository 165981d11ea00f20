"""Worst-case robust accuracy, sample by sample."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Bool, Int

from jnode._batches import gathered
from jnode.attacks.base import AbstractAttack
from jnode.attacks.batches import attack_parts, predict
from jnode.attacks.inputs import check_dtype
from jnode.attacks.random_model import is_random
from jnode.data import check_images, check_labels
from jnode.evaluation.cost import Bar, Cost
from jnode.evaluation.outputs import Outputs, beaten_white_box, weak_beats_strong
from jnode.evaluation.store import Attacked, Store
from jnode.sharding import Sharded, check_divides, replicate, shareable


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    - `summary`: the numbers, ready for JSON.
    - `predictions`: the class given to each clean image.
    - `standing`: per attack, which samples are right before and after it.
    - `attacked`: per attack, what it did.
    """

    summary: dict[str, Any]
    predictions: Int[np.ndarray, " n"]
    standing: list[Bool[np.ndarray, " n"]]
    attacked: list[Attacked]


def evaluate(
    model: Callable,
    images: ArrayLike,
    labels: ArrayLike,
    attacks: Sequence[AbstractAttack],
    *,
    batch_size: int = 250,
    seed: int = 0,
    successive: bool = False,
    keep: int = 16,
    store: Store | None = None,
    cost: Cost | None = None,
    progress: bool = True,
    mesh: Mesh | None = None,
) -> Evaluation:
    """Clean accuracy, and accuracy that is left after each attack and after all.

    Only samples whose clean image is classified rightly are attacked; the others are
    lost already. A sample stands if its attacked image is classified rightly too;
    attacked images are classified anew, after their budget was checked. The worst case
    of a budget counts a sample as standing only if it stands under every attack of that
    norm and of at most that epsilon.

    **Arguments:**

    - `model`: a map from a batch of images to logits; a model of single images is
        wrapped in `jnode.batched`.
    - `images`: [n, height, width, channels], float32 or float64, in [0, 1]. They are
        attacked in float32 unless JAX is in its 64-bit mode.
    - `labels`: [n], the true classes as integers.
    - `attacks`: from `jnode.attacks`, or a `Transfer`.
    - `batch_size`: images at a time; the last batch is filled up.
    - `seed`: of the attacks' random numbers.
    - `successive`: whether an attack is spared the samples that one before it broke, in
        the same norm with at most the same epsilon. A row's robust accuracy is then
        what stands after all of them, and not after this attack alone.
    - `keep`: how many attacked images to return of each attack, broken or not.
    - `store`: keeps what finished attacks found, and gives it back.
    - `cost`: of a batch, so that the progress bar knows the remaining time better.
    - `progress`: whether to draw it.
    - `mesh`: over what devices to spread each batch (`jnode.sharding.data_mesh`); by
        default JAX's first device. The results are the same, unless an attack draws
        random numbers for a smaller batch, one of few samples that is made a multiple
        of the devices. A model that is or holds a `RandomModel` draws for whole
        batches; an adaptive solve in it ends on all devices at once.

    **Returns:** an `Evaluation`. Its `summary["flags"]` names results that look like
    masked gradients.

    **Raises:** `TypeError` and `ValueError` for bad images or labels, or for too few
    classes; `RuntimeError` for an attack that leaves its budget.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    _check(model, images, labels, batch_size, attacks)
    labels = labels.astype(int)
    # Float64 in JAX's 64-bit mode alone.
    images = images.astype(jax.dtypes.canonicalize_dtype(images.dtype))
    n, length = len(labels), min(batch_size, len(labels))
    if mesh is not None:
        check_divides(batch_size, mesh)
        length = shareable(length, mesh)
        # A random model draws for the whole batch, as on one device: it stays one
        # program, which JAX spreads over the devices.
        model = replicate(model if is_random(model) else Sharded(model, mesh), mesh)
    cost = Cost() if cost is None else cost
    with Bar(attacks, n, length, cost, progress) as bar:
        outputs = Outputs()
        clean = []
        for _, x, y, mask in gathered(images, labels, np.arange(n), length, mesh):
            outputs.look(model, x, y, mask)
            clean.append(np.asarray(predict(model, x))[mask])
        predictions = np.concatenate(clean)
        right = predictions == labels
        rows, standing, attacked = [], [], []
        for i, attack in enumerate(attacks):
            before = right.copy()
            if successive:
                for earlier, after in zip(attacks[:i], standing, strict=True):
                    if _covers(earlier, attack):
                        before &= after
            bar.begin(i, int(before.sum()))

            def make():
                return _attack(
                    attack,  # noqa: B023
                    model,
                    (images, labels, np.flatnonzero(before), length, mesh),  # noqa: B023
                    jax.random.fold_in(jax.random.key(seed), i),  # noqa: B023
                    keep,
                    bar,
                )

            found = make() if store is None else store.attack(i, make)
            attacked.append(found)
            standing.append(found.standing(before))
            rows.append(_row(attack, found, standing[-1]))
    checks = {"outputs": outputs.result()}
    found = [*checks["outputs"]["flags"]]
    found += beaten_white_box(rows, n, successive=successive)
    if not successive:
        found += weak_beats_strong(rows)
    summary = {
        "num_examples": n,
        "seed": seed,
        "clean_accuracy": float(right.mean()),
        "successive": successive,
        "attacks": rows,
        "worst_case": worst_case(rows, standing),
        "checks": checks,
        "flags": found,
    }
    return Evaluation(summary, predictions, standing, attacked)


def worst_case(
    rows: list[dict], standing: list[Bool[np.ndarray, " n"]]
) -> list[dict[str, Any]]:
    """Per norm and epsilon, the share of samples that stand under every such attack.

    An attack with a smaller budget counts for a larger one too, and a transferred one
    like any other.
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


def _check(model, images, labels, batch_size, attacks):
    check_images(images)
    check_dtype(images)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    one = jax.ShapeDtypeStruct(
        (1, *images.shape[1:]), jax.dtypes.canonicalize_dtype(images.dtype)
    )
    classes = jax.eval_shape(model, one).shape[1]
    check_labels(labels, classes)
    if len(images) != len(labels):
        raise ValueError(
            f"images and labels must be as many, not {len(images)} and {len(labels)}."
        )
    for attack in attacks:
        if classes < attack.least_classes:
            raise ValueError(
                f"{attack.name} needs a model of at least {attack.least_classes} "
                f"classes, not {classes}: leave it out."
            )


def _covers(earlier: AbstractAttack, attack: AbstractAttack) -> bool:
    """Whether an image that `earlier` broke is broken in `attack`'s budget too."""
    same = earlier.norm == attack.norm
    return same and float(earlier.epsilon) <= float(attack.epsilon)


def _attack(attack, model, data, key, keep, bar) -> Attacked:
    start = time.perf_counter()
    images, labels, samples, length, mesh = data
    place = np.full(len(labels), -1)
    place[samples] = np.arange(len(samples))
    predictions = np.zeros(len(samples), int)
    shown = images[samples[:keep]]
    broken, wrong = [], []
    for part, _, batches in attack_parts(
        attack, model, images, labels, samples, key=key, length=length, mesh=mesh
    ):
        for chosen, adversarial, classes in batches:
            at = place[chosen]
            predictions[at] = classes
            shown[at[at < keep]] = adversarial[at < keep]
            hit = classes != labels[chosen]
            broken.append(chosen[hit])
            wrong.append(adversarial[hit])
            bar.step(part)
    none = np.zeros((0, *images.shape[1:]), images.dtype)
    return Attacked(
        samples,
        predictions,
        np.concatenate([np.zeros(0, int), *broken]),
        np.concatenate([none, *wrong]),
        shown,
        round(time.perf_counter() - start, 3),
    )


def _row(attack, found, standing) -> dict[str, Any]:
    return {
        "name": attack.name,
        "via": attack.via,
        "norm": attack.norm,
        "epsilon": round(float(attack.epsilon), 7),
        "steps": int(attack.steps),
        "restarts": attack.restarts,
        "attacked": len(found.samples),
        "broken": len(found.broken),
        "robust_accuracy": float(standing.mean()),
        "seconds": round(float(found.seconds), 3),
    }
