"""Evaluating a run folder: attacks, certificate and pictures, written beside it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jnode import certify, data
from jnode._versions import versions
from jnode.attacks import AbstractAttack, Batched
from jnode.evaluate import describe, evaluate
from jnode.report import Pictures
from jnode.solvers import trajectory
from jnode.train import RunDir, load
from jnode.train.files import write_json

RADII = tuple(round(0.05 * i, 2) for i in range(41))
"""The L2 radii, in pixel units, at which certified accuracy is written."""


def evaluate_run(
    run_dir: str | os.PathLike,
    attacks: Sequence[AbstractAttack],
    *,
    num_examples: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Attacks and certifies the model of a run on its test images.

    Writes `evaluation.json` and `pictures.npz` into the run folder.

    **Arguments:** the folder; the attacks; how many test images (by default all);
    images at a time; the attacks' seed; where the data lie, if elsewhere than in
    training; whether to draw a progress bar.

    **Returns:** what `evaluation.json` holds.

    **Raises:** what `jnode.load`, `jnode.data.load` and `jnode.evaluate` raise.
    """
    model = load(run_dir)
    run = RunDir(run_dir)
    config, facts = run.read_config()
    test = data.load(
        config.data.name, split="test", data_dir=data_dir or config.data.dir
    )
    if num_examples is not None:
        test = test.take(num_examples)
    images = np.asarray(data.to_float(jnp.asarray(test.images)))
    result = evaluate(
        Batched(model),
        images,
        test.labels,
        attacks,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    nfe = eqx.filter_jit(jax.vmap(lambda x: model.solution(x).stats["nfe"]))
    first = jnp.asarray(images[:batch_size])
    refusal = certify.refusal(model)
    rows = []
    if refusal is None:
        radii = certify.certified_radii(
            model, images, test.labels, batch_size=batch_size
        )
        rows = certify.certified_accuracy(radii, RADII)
        note = f"up to L = {float(model.lipschitz()):.4f} from pixels to features"
    else:
        note = refusal
    found = versions()
    device = found.pop("device")
    summary = {
        "dataset": test.name,
        "split": test.split,
        "num_train": facts["num_train"],
        **result.summary,
        "solver": str(model.solver),
        "certified_accuracy": rows,
        "certificate": note,
        "nfe": float(np.mean(nfe(first))),
        "versions": found,
        "device": device,
    }
    pictures = _pictures(model, images, test.labels, attacks, result)
    if pictures is not None:
        pictures.save(run.path)
    write_json(Path(run_dir) / "evaluation.json", summary)
    return summary


def _pictures(model, images, labels, attacks, result) -> Pictures | None:
    """Pairs under the strongest Linf attack, with their trajectories."""
    iterated = [i for i, a in enumerate(attacks) if a.norm == "linf"]
    if not iterated:
        return None
    chosen = max(iterated, key=lambda i: (attacks[i].steps, -i))
    twins = result.adversarial[chosen]
    n = len(twins)
    times, envelopes = None, None

    @eqx.filter_jit
    def states(model, images):
        return jax.vmap(
            lambda x: trajectory(model.field, model.encoder(x), model.solver)[1]
        )(images)

    times, _ = trajectory(model.field, model.encoder(images[0]), model.solver)
    clean, attacked = (states(model, jnp.asarray(x)) for x in (images[:n], twins))
    difference = np.asarray(clean - attacked).reshape(n, len(times), -1)
    grid = jnp.asarray(times, jnp.float32)
    envelopes = [
        f(model.field, grid) for f in (certify.gronwall, certify.log_norm_envelope)
    ]
    return Pictures(
        attack=describe(attacks[chosen]),
        clean=images[:n],
        adversarial=twins,
        labels=labels[:n],
        clean_predictions=result.predictions[:n],
        adversarial_predictions=result.adversarial_predictions[chosen][:n],
        times=np.asarray(grid),
        distances=np.linalg.norm(difference, axis=-1),
        gronwall=np.asarray(envelopes[0]),
        log_norm=np.asarray(envelopes[1]),
    )
