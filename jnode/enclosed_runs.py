"""Interval certificates of a run: robustness in Linf, and the rounding of features."""

import os
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jnode import certify
from jnode._batches import padded_batches
from jnode.certify import linf
from jnode.evaluation import evaluate
from jnode.models.batched import batched
from jnode.runs import read, write_summary

BATCH = 500


def enclose_run(
    run_dir: str | os.PathLike,
    epsilons: Sequence[float],
    *,
    num_examples: int | None = None,
    data_dir: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Certifies a run's model in Linf by intervals; writes `certificate-linf.json`.

    **Arguments:** the folder; the Linf radii, in pixel units; how many test images, by
    default all; where the data lie, if elsewhere than in training.

    **Returns:** what the file holds. Its `widest` is the width of the widest interval
    of the features at the last radius. If that is many times the size of the features
    themselves (`features`), intervals prove nothing about this model.

    **Raises:** `ValueError` for a negative radius, an adaptive solver, or an operation
    without a rule; and the errors of `jnode.load` and `jnode.data.load`.
    """
    for epsilon in epsilons:
        if not epsilon >= 0:
            raise ValueError(f"epsilon must be at least 0, not {epsilon!r}.")
    run = read(run_dir, num_examples, data_dir)
    rows = certify.linf_certified_accuracy(
        run.model, run.images, run.test.labels, tuple(epsilons), batch_size=BATCH
    )
    some = jnp.asarray(run.images[:50])
    widths, sizes = linf.widths(run.model, some, max(epsilons, default=0.0))
    whole = batched(run.model.bake())
    seen = evaluate(whole, run.images, run.test.labels, (), progress=False)
    summary = {
        **run.facts,
        "arithmetic": certify.arithmetic(),
        "rounding": "proven, given the measured accuracy of elementary functions",
        "clean_accuracy": seen.summary["clean_accuracy"],
        "certified_accuracy": rows,
        "widest": float(np.max(widths)),
        "features": float(np.max(sizes)),
    }
    return write_summary(run.path / "certificate-linf.json", summary)


def rounding_run(
    run_dir: str | os.PathLike,
    *,
    num_examples: int | None = None,
    data_dir: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """How far rounding moves the features of a run's test images: proven, and allowed.

    Writes `certificate-rounding.json`. Arguments and errors are those of `enclose_run`.

    **Returns:** what the file holds: the largest proven bound and, beside it, the
    allowance of the L2 certificate, which is `None` if no Lipschitz constant is known.
    """
    run = read(run_dir, num_examples, data_dir)
    size = min(BATCH, len(run.images))
    pairs = [
        np.asarray(certify.proven_rounding(run.model, jnp.asarray(x)))[:, mask]
        for _, (x,), mask in padded_batches((run.images,), size)
    ]
    proven, stated = np.concatenate(pairs, axis=1)
    summary: dict[str, Any] = {
        **run.facts,
        "arithmetic": certify.arithmetic(),
        "largest_proven": float(np.max(proven)),
        "allowed": None,
    }
    if np.all(np.isfinite(stated)):
        ratio = stated / np.maximum(proven, np.finfo(proven.dtype).tiny)
        summary["allowed"] = {
            "smallest": float(np.min(stated)),
            "least_ratio": float(np.min(ratio)),
            "median_ratio": float(np.median(ratio)),
            "covered": float(np.mean(proven <= stated)),
        }
    return write_summary(run.path / "certificate-rounding.json", summary)
