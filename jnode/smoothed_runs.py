"""Certifies a run's model smoothed by noise."""

import os
from collections.abc import Sequence
from typing import Any

import jax.random as jr
import numpy as np
from jax.sharding import Mesh

from jnode import certify
from jnode.certify import Smoothing
from jnode.runs import read, write_summary
from jnode.sharding import is_main_process


def smooth_run(
    run_dir: str | os.PathLike,
    smoothing: Smoothing,
    radii: Sequence[float],
    *,
    num_examples: int | None = None,
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    progress: bool = True,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Certifies the smoothed classifier of a run, whatever its solver.

    Writes `certificate-smoothed.json` into the run folder. It refers to the smoothed
    classifier and, for each image, is wrong with probability at most `alpha`.

    **Arguments:** the folder; how to smooth; the L2 radii to report; how many test
    images; the seed of the noise; where the data lie; whether to draw a progress bar;
    over what devices to spread the images.

    **Raises:** what `jnode.load`, `jnode.data.load` and `smooth_certify` raise.
    """
    run = read(run_dir, num_examples, data_dir)
    how: dict = dict(progress=progress and is_main_process(), mesh=mesh)
    key = jr.key(seed)
    found = certify.smooth_certify(run.model, run.images, smoothing, key=key, **how)
    proven = np.where(found.predictions == run.test.labels, found.radii, -1.0)
    summary = {
        **run.facts,
        "smoothing": {
            "sigma": smoothing.sigma,
            "n0": smoothing.n0,
            "n": smoothing.n,
            "alpha": smoothing.alpha,
            "seed": seed,
            "largest_radius": smoothing.largest_radius,
        },
        "abstained": float(np.mean(found.predictions == -1)),
        "clean_accuracy": float(np.mean(proven >= 0)),
        "certified_accuracy": certify.certified_accuracy(proven, radii),
    }
    return write_summary(run.path / "certificate-smoothed.json", summary)
