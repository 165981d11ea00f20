"""Evaluation and certification of a trained model in its run folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jnode import certify, data
from jnode._files import write_json
from jnode._process import versions
from jnode.attacks import PGD, Budget, Trial
from jnode.attacks.trial import Pair, as_trial
from jnode.certify import accuracy
from jnode.certify.search import tightness
from jnode.certify.survey import survey
from jnode.data import Dataset
from jnode.evaluation import (
    PROTOCOLS,
    Evaluation,
    Store,
    budgets,
    check_model,
    checks,
    count_evaluations,
    evaluate,
    plan,
    surrogates,
)
from jnode.evaluation.protocols import Protocol
from jnode.evaluation.store import described, fingerprint
from jnode.models import ODEClassifier, load
from jnode.models.batched import batched
from jnode.models.file import DESCRIPTION, WEIGHTS
from jnode.report.pictures import pairs
from jnode.sharding import check_divides, is_main_process, shareable
from jnode.train import RunDir, evaluation_images, training_images

RADII = tuple(round(0.05 * i, 2) for i in range(41))
"""The L2 radii, in pixel units, at which certified accuracy is written."""
BATCH = 250
"""Images at a time in `certify_run`, rounded up to a multiple of the devices."""


class Opened(NamedTuple):
    """A run folder that was read: its model, still constrained, and its test images.

    - `num_train`: the number of training images.
    - `test`: the test images or, if the run held out some of the training images, those
        (see its `split`); `images`: the same as floats in [0, 1].
    """

    path: Path
    model: ODEClassifier
    num_train: int
    test: Dataset
    images: Float[np.ndarray, "n height width channels"]

    @property
    def facts(self) -> dict[str, Any]:
        """What each certificate of a run begins with: its data and its solver."""
        return {
            "dataset": self.test.name,
            "split": self.test.split,
            "num_examples": len(self.test),
            "num_train": self.num_train,
            "solver": str(self.model.solver),
        }


def read(
    run_dir: str | os.PathLike,
    num_examples: int | None,
    data_dir: str | os.PathLike | None,
) -> Opened:
    """Reads a run folder, and all its test images or the first `num_examples`.

    **Raises:** the errors of `jnode.load` and `jnode.data.load`.
    """
    run = RunDir(run_dir)
    config, facts = run.read_config()
    model = load(run_dir)
    test = evaluation_images(config.data, data_dir)
    test = test if num_examples is None else test.take(num_examples)
    images = np.asarray(data.to_float(jnp.asarray(test.images)))
    return Opened(run.path, model, facts["num_train"], test, images)


def evaluate_run(
    run_dir: str | os.PathLike,
    attacks: Sequence[Pair] = (),
    *,
    protocol: str | None = None,
    successive: bool = False,
    norm: str | None = None,
    epsilons: Sequence[float] = (),
    num_examples: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    progress: bool = True,
    pictures: bool = True,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Attacks, checks and certifies the model of a run on its test images.

    Writes `evaluation.json`, `pictures.npz` and, into `evaluation/`, each finished
    attack and check, from which the same call resumes after an interruption.

    **Arguments:** the folder; `attacks` with their budgets (`jnode.attacks.Trial`),
    each run on all samples or, if `successive`, on those still robust; or instead a
    `protocol` ("quick", "standard" or "full", always successive) and its budgets, by
    default the usual ones for the data; the number of test images, by default all or
    the protocol's; the batch size; the attacks' seed; another data folder; whether to
    draw a progress bar, and to keep images for the report; the devices for each batch.

    **Returns:** what `evaluation.json` holds.

    **Raises:** `ValueError` for both attacks and a protocol, or an unknown protocol;
    `RuntimeError` while another process evaluates this run; and the errors of `read`.
    """
    _check_request(attacks, protocol, norm, epsilons, batch_size, mesh)
    if num_examples is None and protocol is not None:
        num_examples = PROTOCOLS[protocol].num_examples
    run = read(run_dir, num_examples, data_dir)
    # Baked for the attacks; the certificate is that of the trained model.
    model, wanted = run.model.bake(), []
    attacks = [as_trial(pair) for pair in attacks]
    if protocol is not None:
        successive, wanted = True, budgets(run.test.name, norm, epsilons)
        attacks = _planned(model, run, PROTOCOLS[protocol], wanted)
    how: dict = dict(successive=successive, seed=seed, batch_size=batch_size)
    images, labels = run.images, run.test.labels
    # Locked to the end, since another evaluation would write the same files.
    with Store(
        run.path / "evaluation", _arguments(run, attacks, protocol, how)
    ) as store:
        progress = progress and is_main_process()
        if progress and store.message:
            print(store.message, flush=True)
        how |= {"keep": store.attack, "progress": progress, "mesh": mesh}
        result = evaluate(batched(model), images, labels, attacks, **how)
        checked = _checked(model, run, protocol, wanted, seed, store)
        summary = _summary(run, protocol, result, checked)
        summary |= _proven(run, batch_size, mesh) | _counted(model, run, batch_size)
        if pictures:
            _draw(run, model, attacks, result)
        return write_summary(run.path / "evaluation.json", summary)


def write_summary(path: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Writes a file of a run folder, and returns its content; of several processes the
    first writes."""
    if is_main_process():
        write_json(path, summary)
    return summary


def _check_request(attacks, protocol, norm, epsilons, batch_size, mesh) -> None:
    if (protocol is not None) == bool(attacks):
        raise ValueError("attacks or protocol must be given, and not both.")
    if protocol is not None and protocol not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise ValueError(f"protocol must be one of {known}, not {protocol!r}.")
    check_divides(batch_size, mesh)
    if protocol is None and (norm is not None or epsilons):
        raise ValueError(
            "norm and epsilon must be left out without a protocol: each attack has its "
            "own."
        )


def _planned(
    model: ODEClassifier, run: Opened, protocol: Protocol, wanted: Sequence[Budget]
) -> list[Trial]:
    through = surrogates(model, run.images, run.test.labels, protocol.surrogates)
    return plan(protocol, wanted, through, classes=run.test.num_classes)


def _arguments(run: Opened, attacks, protocol, how: dict[str, Any]) -> dict[str, Any]:
    """All settings that determine the result of an evaluation."""
    return {
        "the model": fingerprint(*(run.path / name for name in (DESCRIPTION, WEIGHTS))),
        "the data": fingerprint(run.images, run.test.labels),
        "the attacks": described(attacks),
        "the protocol": [protocol, *how.values()],
        "the versions": versions(),
    }


def _checked(
    model: ODEClassifier, run: Opened, protocol, wanted, seed, store: Store
) -> dict[str, Any]:
    """The checks of the model; without a protocol only the check of its adjoint."""
    if protocol is None:
        return {"adjoint": checks.adjoint(model.solver)}
    some, how = (run.images, run.test.labels), PROTOCOLS[protocol]
    return check_model(model, *some, how, wanted[0], seed=seed, keep=store.check)


def _draw(run: Opened, model: ODEClassifier, attacks, result: Evaluation) -> None:
    kept = pairs(model, attacks, result.outcome)
    if kept is not None and is_main_process():
        kept.save(run.path)


def _summary(
    run: Opened, protocol, result: Evaluation, checked: dict[str, Any]
) -> dict[str, Any]:
    found, every = versions(), result.summary["checks"] | checked
    # Those of the outputs are among the evaluation's own.
    flags = [flag for check in checked.values() for flag in check["flags"]]
    return {
        "dataset": run.test.name,
        "split": run.test.split,
        "num_train": run.num_train,
        "protocol": protocol,
        "estimated_seconds": None,  # of the file's format; nothing is estimated
        **result.summary,
        "checks": every,
        "flags": [*result.summary["flags"], *flags],
        "versions": {k: v for k, v in found.items() if k != "device"},
        "device": found["device"],
    }


def _proven(run: Opened, batch_size, mesh) -> dict[str, Any]:
    """The solver and the certificate, as an evaluation reports them."""
    rows, reason = [], certify.refusal(run.model)
    note = f"none: {reason}"
    if reason is None:
        radii = certify.certified_radii(
            run.model, run.images, run.test.labels, batch_size=batch_size, mesh=mesh
        )
        rows = certify.certified_accuracy(radii, RADII)
        note = "over every path of steps that an image near by can take"
        if not run.model.solver.adaptive:
            constant = float(run.model.lipschitz())
            note = f"up to L = {constant:.4f} from pixels to features"
    return {
        "solver": str(run.model.solver),
        "certified_accuracy": rows,
        "certificate": note,
        "rounding": certify.ALLOWANCE["rounding"],
        "assumed": certify.assumptions(run.model),
    }


def _counted(model: ODEClassifier, run: Opened, batch_size) -> dict[str, float | int]:
    nfe = count_evaluations(model, run.images, batch_size)
    return {"nfe": float(np.mean(nfe)), "nfe_largest": int(np.max(nfe))}


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
    r"""Certifies a run's model on its test images, and writes `certificate.json`.

    **Arguments:** the folder; the L2 radii to report, in pixel units; Linf radii to
    report as well, each certified by the L2 ball of $\sqrt n$ times its radius, $n$ the
    number of pixels, which contains the Linf ball; the number of test images, by
    default all; how many of them to attack, to certify locally and to search for a
    lower bound on the Lipschitz constant, which take longer; the steps of PGD; whether
    to `freeze` an adaptive model on the steps for the first training image (see
    `ODEClassifier.freeze`); the seed; another data folder; whether to draw progress
    bars; the devices over which images are sharded.

    **Returns:** what `certificate.json` holds.

    **Raises:** `ValueError` if nothing can be certified, with the reason, and for a
    negative radius; and the errors of `jnode.load` and `jnode.data.load`.
    """
    _check_radii(radii, linf)
    run = read(run_dir, num_examples, data_dir)
    model = _certifiable(run, freeze, data_dir)
    progress = progress and is_main_process()
    proven, local = _both_radii(model, run, num_attacked, progress, mesh)
    some, labels = run.images[:num_attacked], run.test.labels[:num_attacked]
    positive = sorted({float(r) for r in radii if r > 0})
    attacks = [Trial(PGD(steps=steps), Budget("l2", r)) for r in positive]
    how: dict = dict(batch_size=shareable(BATCH, mesh), mesh=mesh, seed=seed)
    whole = batched(model.bake())
    seen = evaluate(whole, some, labels, attacks, progress=progress, **how)
    summary = {
        **_certificate(run, model, proven, radii, linf),
        "frozen_grid": model.solver.grid if freeze else None,
        "attacked": {
            "num_examples": len(some),
            "attack": f"pgd-{steps} l2",
            "seed": seed,
            "clean_accuracy": seen.summary["clean_accuracy"],
            "rows": _attacked_rows(positive, proven[: len(some)], local, seen),
            "flags": seen.summary["flags"],
        },
        "tightness": tightness(model, some, seed=seed),
        "adaptive": survey(model, run.images, run.test.labels, radii, num_attacked),
        "curve": accuracy.curve(
            proven[: len(some)], local, up_to=max(radii, default=1)
        ),
    }
    return write_summary(run.path / "certificate.json", summary)


def _both_radii(model, run: Opened, num_attacked, progress, mesh):
    """The certified radii of all images, and the local ones of some."""
    images, labels = run.images, run.test.labels
    # As many images on each device as on one alone: then the radii are the same bits.
    size = BATCH * (1 if mesh is None else mesh.size)
    how: dict = {"batch_size": size, "mesh": mesh}
    proven = certify.certified_radii(model, images, labels, **how)
    some = images[:num_attacked], labels[:num_attacked]
    how = {"progress": progress, "mesh": mesh}
    return proven, accuracy.locally_certified_radii(model, *some, **how)


def _check_radii(radii, linf) -> None:
    for radius in (*radii, *linf):
        if not radius >= 0:
            raise ValueError(f"radius must be at least 0, not {radius!r}.")


def _certifiable(run: Opened, freeze: bool, data_dir) -> ODEClassifier:
    """The model or, with `freeze`, that model on the steps for one training image."""
    model = run.model
    if freeze:
        config, _ = RunDir(run.path).read_config()
        first = training_images(config.data, data_dir).take(1)
        model = model.freeze(data.to_float(jnp.asarray(first.images))[0])
    reason = certify.refusal(model)
    if reason is not None:
        raise ValueError(f"No certificate: {reason}.")
    return model


def _certificate(
    run: Opened, model: ODEClassifier, proven, radii, linf
) -> dict[str, Any]:
    """The rows of the certificate, from the radii of all images."""
    pixels = run.images[0].size
    return {
        **run.facts,
        "solver": str(model.solver),  # that of a frozen model is another
        "arithmetic": certify.arithmetic(),
        "rounding": certify.ALLOWANCE,
        "assumed": certify.assumptions(model),
        "clean_accuracy": float(np.mean(proven >= 0)),
        "certified_accuracy": [
            *certify.certified_accuracy(proven, radii),
            *accuracy.linf_certified_accuracy(proven, linf, pixels=pixels),
        ],
    }


def _attacked_rows(radii, proven, local, seen: Evaluation) -> list[dict[str, float]]:
    # A success within a smaller budget is a success within a larger one.
    robust = np.logical_and.accumulate(seen.outcome.robust)
    return [
        {
            "radius": r,
            "certified_accuracy": float(np.mean(proven >= r)),
            "certified_locally": float(np.mean(local >= r)),
            "robust_accuracy": float(np.mean(mask)),
        }
        for r, mask in zip(radii, robust, strict=True)
    ]
