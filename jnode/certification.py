"""Certifying a run folder: what is proven, next to what was seen."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from tqdm import tqdm

from jnode import certify, data
from jnode.attacks import PGD
from jnode.certify import Smoothing
from jnode.data import padded_batches
from jnode.evaluation import evaluate
from jnode.models import ODEClassifier
from jnode.models.batched import batched
from jnode.sharding import shareable
from jnode.train import RunDir, load
from jnode.train.files import write_json

CURVE = 201
"""The number of radii in the curves for plots."""
BATCH = 250
"""Images at a time, rounded up to a multiple of the devices."""


def certify_run(
    run_dir: str | os.PathLike,
    radii: Sequence[float],
    *,
    linf: Sequence[float] = (),
    num_examples: int | None = None,
    num_attacked: int = 500,
    steps: int = 40,
    freeze: bool = False,
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    progress: bool = True,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    r"""Certifies the model of a run on its test images; attacks and searches some.

    Writes `certificate.json` into the run folder.

    **Arguments:**

    - `run_dir`: the folder.
    - `radii`: the L2 radii to report, in pixel units.
    - `linf`: Linf radii to report too, each certified by the L2 ball of $\sqrt n$ times
        its radius, $n$ the number of pixels, which holds the Linf ball.
    - `num_examples`: how many test images; by default all.
    - `num_attacked`: how many of them to attack, to certify locally and to search for
        the strongest stretch, all of which takes longer.
    - `steps`: of the attack, PGD.
    - `freeze`: whether to certify an adaptive model on the steps that its solver takes
        for the first training image (see `ODEClassifier.freeze`).
    - `seed`: of attacks and searches.
    - `data_dir`: where the data lie, if elsewhere than in training.
    - `progress`: whether to draw progress bars.
    - `mesh`: over what devices to spread batches of global certificates and attacks.

    **Returns:** what `certificate.json` holds.

    **Raises:** `ValueError` where nothing can be certified, with the reason, and for a
    negative radius; what `jnode.load` and `jnode.data.load` raise.
    """
    for radius in (*radii, *linf):
        if not radius >= 0:
            raise ValueError(f"radius must be at least 0, not {radius!r}.")
    model, facts, test = _read(run_dir, num_examples, data_dir)
    if freeze:
        first = data.load(test.name, split="train", data_dir=data_dir).take(1)
        model = model.freeze(data.to_float(jnp.asarray(first.images))[0])
    reason = certify.refusal(model)
    if reason is not None:
        raise ValueError(f"No certificate: {reason.removeprefix('none: ')}.")
    plain = model.bake()
    images = np.asarray(data.to_float(jnp.asarray(test.images)))
    spread = {"batch_size": shareable(BATCH, mesh), "mesh": mesh}
    proven = certify.certified_radii(model, images, test.labels, **spread)
    some, labels = images[:num_attacked], test.labels[:num_attacked]
    local = _local(model, some, labels, progress)
    positive = sorted({float(r) for r in radii if r > 0})
    attacks = [PGD(r, norm="l2", steps=steps) for r in positive]
    seen = evaluate(
        batched(plain), some, labels, attacks, seed=seed, progress=progress, **spread
    )
    # An attack with a smaller budget counts for a larger one too.
    standing = np.logical_and.accumulate(np.asarray(seen.standing))
    root = images[0].size ** 0.5
    summary = {
        "dataset": test.name,
        "split": test.split,
        "num_examples": len(test),
        "num_train": facts["num_train"],
        "solver": str(model.solver),
        "frozen_grid": model.solver.grid if freeze else None,
        "arithmetic": certify.arithmetic(),
        "rounding": certify.ALLOWANCE,
        "assumed": certify.assumptions(model),
        "clean_accuracy": float(np.mean(proven >= 0)),
        "certified_accuracy": [
            *certify.certified_accuracy(proven, radii),
            *(
                {"norm": "linf", "radius": float(r), "certified_accuracy": share}
                for r in linf
                for share in [float(np.mean(proven >= r * root * (1 + 1e-6)))]
            ),
        ],
        "attacked": {
            "num_examples": len(some),
            "attack": f"pgd-{steps} l2",
            "seed": seed,
            "clean_accuracy": seen.summary["clean_accuracy"],
            "rows": [
                {
                    "radius": r,
                    "certified_accuracy": float(np.mean(proven[: len(some)] >= r)),
                    "certified_locally": float(np.mean(local >= r)),
                    "robust_accuracy": float(np.mean(mask)),
                }
                for r, mask in zip(positive, standing, strict=True)
            ],
            "flags": seen.summary["flags"],
        },
        "tightness": stretch(model, some, seed=seed),
        "curve": _curve(proven[: len(some)], local, max(radii, default=1.0)),
    }
    write_json(Path(run_dir) / "certificate.json", summary)
    return summary


def smooth_run(
    run_dir: str | os.PathLike,
    smoothing: Smoothing,
    radii: Sequence[float],
    *,
    num_examples: int | None = None,
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Certifies the smoothed classifier of a run, whatever its solver.

    Writes `certificate-smoothed.json` into the run folder. It speaks of the smoothed
    classifier, and holds up to the probability `alpha` for each image.

    **Arguments:** the folder; how to smooth; the L2 radii to report; how many test
    images; the seed of the noise; where the data lie; whether to draw a progress bar.

    **Raises:** what `jnode.load`, `jnode.data.load` and `smooth_certify` raise.
    """
    model, facts, test = _read(run_dir, num_examples, data_dir)
    images = np.asarray(data.to_float(jnp.asarray(test.images)))
    found = certify.smooth_certify(
        model, images, smoothing, key=jr.key(seed), progress=progress
    )
    proven = np.where(found.predictions == test.labels, found.radii, -1.0)
    summary = {
        "dataset": test.name,
        "split": test.split,
        "num_examples": len(test),
        "num_train": facts["num_train"],
        "solver": str(model.solver),
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
    write_json(Path(run_dir) / "certificate-smoothed.json", summary)
    return summary


def _read(run_dir, num_examples, data_dir):
    model = load(run_dir)
    config, facts = RunDir(run_dir).read_config()
    where = data_dir or config.data.dir
    test = data.load(config.data.name, split="test", data_dir=where)
    return model, facts, test if num_examples is None else test.take(num_examples)


def _local(model: ODEClassifier, images, labels, progress) -> np.ndarray:
    """Radii as of `certified_radii`, from bounds around each image."""

    @certify.certifying
    @eqx.filter_jit
    def one_batch(model, images, labels):
        predictions = jnp.argmax(jax.vmap(model)(images), axis=1)
        radii = certify.local_radius(model, images)
        return jnp.where(predictions == labels, radii, -1.0)

    total = len(images)
    parts = []
    with tqdm(total=total, disable=not progress, unit="image") as bar:
        bar.set_description("local certificates")
        for x, y, mask in padded_batches(images, labels, min(48, total)):
            radii = one_batch(model, jnp.asarray(x, jnp.float32), jnp.asarray(y))
            parts.append(np.asarray(radii)[mask])
            bar.update(len(parts[-1]))
    return np.concatenate(parts)


def stretch(
    model: ODEClassifier,
    images: Float[np.ndarray, "n height width channels"],
    *,
    seed: int,
) -> dict[str, float | None]:
    """From pixels to features: the certified constant, and what a search found.

    **Arguments:** the model; images, of which the first 16 start the search; its seed.

    **Returns:** `certified_upper_bound`, `empirical_lower_bound` and their `ratio`;
    `None` for what needs a certificate where there is none.
    """
    starts = jnp.asarray(images[:16], jnp.float32)
    keys = jr.split(jr.key(seed), len(starts))

    @eqx.filter_jit
    def search(model, starts, keys):
        one = lambda x, key: certify.strongest_stretch(  # noqa: E731
            model.embed, x, key=key, steps=100
        )
        return jnp.max(jax.vmap(one)(starts, keys))

    found = float(search(model.bake(), starts, keys))
    proven = certify.refusal(model) is None
    bound = float(model.lipschitz()) if proven else None
    return {
        "certified_upper_bound": bound,
        "empirical_lower_bound": found,
        "ratio": None if bound is None else bound / found,
    }


def _curve(proven, local, largest) -> dict[str, list[float]]:
    reach = max(largest, float(np.quantile(local, 0.99)), 1e-3)
    radii = np.linspace(0, 1.05 * reach, CURVE)
    share = lambda found: [float(np.mean(found >= r)) for r in radii]  # noqa: E731
    return {
        "radius": [float(r) for r in radii],
        "certified_accuracy": share(proven),
        "certified_locally": share(local),
    }
