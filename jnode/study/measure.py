"""The measurements of one cell, as a dictionary for JSON."""

import os
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jnode import attacks, certify, data
from jnode._process import versions
from jnode.attacks import Budget, Trial
from jnode.attacks.losses import classes_of, logits_of
from jnode.certify.search import tightness
from jnode.data import Dataset, padded_batches
from jnode.evaluation import Store, Transfer, count_evaluations
from jnode.evaluation.store import fingerprint
from jnode.models import ODEClassifier, load
from jnode.models.batched import batched
from jnode.runs import evaluate_run
from jnode.study.cells import Cell
from jnode.train import evaluation_images
from jnode.train.step import dtype_of, init_state

BATCH = 250
TRANSFERRED = 20
"""The steps of PGD on another solver, whose images are transferred."""


def measure(
    cell: Cell,
    run_dir: str | os.PathLike,
    *,
    data_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures the trained run of a cell, in its folder.

    **Arguments:** the cell; its run folder, with the cell's solver; the data folder, if
    not that of the configuration; whether to draw progress bars.

    **Returns:** accuracies in [0, 1], each with its number of images.

    **Raises:** the errors of `jnode.load`, `jnode.data.load` and `evaluate_run`.
    """
    wanted = cell.measures
    trained = load(run_dir)
    model = trained.bake()
    test = evaluation_images(cell.train.data, data_dir)
    images = np.asarray(data.to_float(jnp.asarray(test.images), dtype_of(model)))
    found = _accuracy(trained, test, images, wanted.radii)
    found["parameters"] = _parameters(cell, test)
    some = jnp.asarray(images[:BATCH])
    found |= _evaluations(model, some)
    found["ms_per_image"] = _milliseconds(model, some)
    if wanted.adaptive is not None:
        name = str(wanted.adaptive)
        mean = _evaluations(model.with_solver(wanted.adaptive), some)["nfe"]
        found["adaptive"] = {"solver": name, "nfe": mean}
    if wanted.tightness:
        found["tightness"] = tightness(trained, images, seed=cell.train.seed)
    common = {"pictures": False, "data_dir": data_dir, "progress": progress}
    if wanted.alone:
        # Stored separately, since a run folder holds one evaluation at a time, so that
        # a cell that was stopped in its AutoAttack resumes there.
        found["alone"] = _store(cell, Path(run_dir)).check(
            "alone",
            lambda: _kept(
                evaluate_run(
                    run_dir,
                    _alone(cell, model),
                    num_examples=wanted.num_alone,
                    **common,
                )
            ),
        )
    if wanted.budgets:
        tried = sum(ensembles(cell, test.num_classes), ())
        seen = evaluate_run(
            run_dir,
            tried,
            successive=True,
            num_examples=wanted.num_ensemble,
            **common,
        )
        found["ensemble"] = _kept(seen)
    return found


def _store(cell: Cell, run_dir: Path) -> Store:
    model = fingerprint(run_dir / "model.eqx")
    arguments = {"the cell": repr(cell), "the model": model, "versions": versions()}
    return Store(run_dir / "measured", arguments)


def _parameters(cell: Cell, test: Dataset) -> int:
    """The number of trained parameters; baked models hold more numbers."""
    shape, classes = test.image_shape, test.num_classes
    sizes = {"image_shape": shape, "classes": classes, "total_steps": 1}
    model = init_state(cell.train, **sizes).model
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return sum(leaf.size for leaf in leaves)


def _accuracy(
    model: ODEClassifier, test: Dataset, images: np.ndarray, radii
) -> dict[str, Any]:
    """Clean accuracy on all test images, and certified accuracy if there is any."""
    found: dict[str, Any] = {"num_test": len(test)}
    refusal = certify.refusal(model)
    if refusal is None:
        proven = certify.certified_radii(model, images, test.labels, batch_size=BATCH)
        found["clean_accuracy"] = float(np.mean(proven >= 0))
        found["lipschitz"] = float(model.lipschitz())
        found["certified_accuracy"] = certify.certified_accuracy(proven, radii)
        return found
    right = [
        classes_of(logits_of(batched(model), jnp.asarray(x)))[mask] == y[mask]
        for _, (x, y), mask in padded_batches((images, test.labels), BATCH)
    ]
    found["clean_accuracy"] = float(np.mean(np.concatenate(right)))
    note = f"none: {refusal}"
    return found | {"certified_accuracy": [], "certificate": note}


def _evaluations(model: ODEClassifier, images: Float[Array, "n h w c"]) -> dict:
    counts = count_evaluations(model, np.asarray(images), BATCH)
    return {"nfe": float(np.mean(counts)), "nfe_largest": int(np.max(counts))}


def _milliseconds(model: ODEClassifier, images: Float[Array, "n h w c"]) -> float:
    """Milliseconds for each image of a batch; the median of a few runs."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        logits_of(batched(model), images).block_until_ready()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[1:])) / len(images)


def _alone(cell: Cell, model: ODEClassifier) -> list[Trial]:
    tried = [attacks.parse(spec) for spec in cell.measures.alone]
    via = cell.measures.via
    if via is None or via == cell.evaluated:
        return tried
    source = batched(model.with_solver(via))
    budgets = {(t.norm, float(t.epsilon)) for t in tried if t.budget is not None}
    transfer = Transfer(source=source, via=str(via), steps=TRANSFERRED)
    tried += [
        Trial(transfer, Budget(norm, round(epsilon, 7)))
        for norm, epsilon in sorted(budgets)
    ]
    return tried


def ensembles(cell: Cell, classes: int) -> list[tuple[Trial, ...]]:
    """AutoAttack at each budget of a cell."""
    return [
        attacks.autoattack(Budget(norm, epsilon), classes=classes)
        for norm, epsilon in sorted(cell.measures.budgets)
    ]


def _kept(seen: dict[str, Any]) -> dict[str, Any]:
    names = ("num_examples", "clean_accuracy", "attacks", "worst_case", "flags")
    return {name: seen[name] for name in names}
