"""The measurements of one cell, as a dictionary for JSON."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jnode import attacks, certify
from jnode._process import versions
from jnode.attacks import Budget, Trial
from jnode.attacks.losses import classes_of, logits_of
from jnode.certify.search import tightness
from jnode.data import padded_batches
from jnode.evaluation import (
    Store,
    Transfer,
    checks,
    count_evaluations,
    evaluate,
    interval,
)
from jnode.evaluation.accuracy import worst_masks
from jnode.evaluation.store import described, fingerprint
from jnode.models import ODEBlock, ODEClassifier
from jnode.models.batched import batched
from jnode.study.cells import Subject

BATCH = 250
TRANSFERRED = 20
"""The steps of PGD on a surrogate, whose images are transferred."""
ROUNDING = 1e-5
"""The part of the largest logit within which a function's margins do not count."""


def measure(
    subject: Subject, folder: str | os.PathLike, *, progress: bool = True
) -> dict[str, Any]:
    """Measures a classifier on its images.

    **Arguments:** the subject; a folder, in which `measured/` keeps each finished
    attack; whether to draw progress bars.

    **Returns:** accuracies in [0, 1], each with its number of images; see the page
    about studies for all entries.

    **Raises:** the errors of `jnode.evaluation.evaluate`.
    """
    wanted, model = subject.measures, subject.model
    images, labels = np.asarray(subject.images), np.asarray(subject.labels)
    logits = _logits(subject.classifier, images)
    own = classes_of(logits)
    right = own == labels
    found: dict[str, Any] = {
        "num_test": len(labels),
        "data": fingerprint(images, labels),
        "clean_accuracy": float(np.mean(right)),
        "right": packed(right),
        "disagreement": {
            name: float(np.mean(classes_of(_logits(other, images)) != own))
            for name, other in subject.surrogates.items()
        },
        **_certified(subject, images, labels, logits),
        **_evaluations(subject, images[:BATCH]),
        "ms_per_image": _milliseconds(subject, images[:BATCH]),
    }
    if isinstance(model, ODEClassifier):
        first = images[:BATCH]
        found["movement"] = float(np.mean(_movement(model, jnp.asarray(first))))
        if wanted.adaptive is not None:
            other = model.with_solver(wanted.adaptive).bake()
            counts = count_evaluations(other, first, BATCH)
            name = str(wanted.adaptive)
            found["adaptive"] = {"solver": name, "nfe": float(np.mean(counts))}
        if wanted.tightness:
            found["tightness"] = tightness(model, images, seed=0)
    trials = {"alone": _alone(subject), "ensemble": ensemble(subject, logits.shape[1])}
    robust: dict[tuple[str, float], dict[str, Any]] = {}
    for name, tried in trials.items():
        if tried:
            seen, masks = _attacked(subject, name, tried, Path(folder), progress)
            found[name] = seen
            # AutoAttack comes last, and counts where it ran.
            robust |= {budget: _robust(budget, mask) for budget, mask in masks.items()}
    parts = [found[name] for name in trials if name in found]
    return found | {
        "robust": list(robust.values()),
        "flags": list(dict.fromkeys(flag for part in parts for flag in part["flags"])),
        "device": versions()["device"],
    }


def packed(right: Bool[np.ndarray, " n"]) -> str:
    """A mask of images as text: four of them in each hexadecimal digit."""
    return np.packbits(right).tobytes().hex()


def unpacked(text: str, number: int) -> Bool[np.ndarray, " n"]:
    """The mask of so many images."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=number) > 0


def _logits(model: Callable, images: np.ndarray) -> Float[np.ndarray, "n classes"]:
    whole = batched(model)
    parts = [
        np.asarray(logits_of(whole, jnp.asarray(x)))[mask]
        for _, (x,), mask in padded_batches((images,), BATCH)
    ]
    return np.concatenate(parts)


def _certified(
    subject: Subject, images: np.ndarray, labels: np.ndarray, logits: np.ndarray
) -> dict[str, Any]:
    """Certified accuracy, and the constant from which that in L2 follows, or why there
    is none."""
    model, radii, rows = subject.model, subject.measures.radii, []
    if isinstance(model, ODEClassifier):
        linf = subject.measures.linf
        rows = certify.linf_certified_accuracy(model, images, labels, linf)
        refusal, constant = certify.refusal(model), float(model.lipschitz())
        if refusal is None:
            proven = certify.certified_radii(model, images, labels, batch_size=BATCH)
    else:
        constant = subject.lipschitz
        refusal = None if constant is not None else "no Lipschitz constant is given"
        if constant is not None:
            proven = _radii_of_margins(logits, labels, constant)
    if refusal is not None:
        return {"certified_accuracy": rows, "certificate": f"none: {refusal}"}
    rows = [*certify.certified_accuracy(proven, radii), *rows]
    return {"lipschitz": constant, "certified_accuracy": rows}


def _radii_of_margins(logits, labels, lipschitz: float) -> np.ndarray:
    """The radius within which the difference of any two logits keeps its sign.

    The difference of two entries of a vector changes by at most the square root of 2
    times the change of the vector.
    """
    own = np.arange(logits.shape[1])[None] == labels[:, None]
    others = np.max(np.where(own, -np.inf, logits), axis=1)
    margins = logits[own] - others - 2 * ROUNDING * np.max(np.abs(logits), axis=1)
    right = classes_of(logits) == labels
    return np.where(right, np.maximum(margins, 0) / (2**0.5 * lipschitz), -1.0)


def _evaluations(subject: Subject, images: np.ndarray) -> dict[str, Any]:
    """The mean and largest number of evaluations of the field; `None` if unknown."""
    if isinstance(subject.model, ODEClassifier):
        counts = count_evaluations(subject.model.bake(), images, BATCH)
    else:
        counts = eqx.filter_jit(jax.vmap(subject.evaluations))(jnp.asarray(images))
    if counts is None:
        return {"nfe": None, "nfe_largest": None}
    return {"nfe": float(np.mean(counts)), "nfe_largest": int(np.max(counts))}


@eqx.filter_jit
def _movement(model: ODEClassifier, images) -> Float[Array, " n"]:
    """How far the blocks move each image's state: the distance of a block's end from
    its start over the norm of the start, added up over the blocks."""

    def one(image):
        before, total = image, jnp.zeros((), image.dtype)
        for layer, after in zip(model.layers, model.states(image), strict=True):
            if isinstance(layer, ODEBlock):
                length = jnp.linalg.norm((after - before).ravel())
                total += length / jnp.maximum(jnp.linalg.norm(before.ravel()), 1e-12)
            before = after
        return total

    return jax.vmap(one)(images)


def _milliseconds(subject: Subject, images: np.ndarray) -> float:
    """Milliseconds for each image of a batch; the median of a few runs."""
    whole, x, times = batched(subject.classifier), jnp.asarray(images), []
    for _ in range(6):
        start = time.perf_counter()
        logits_of(whole, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[1:])) / len(images)


def _alone(subject: Subject) -> list[Trial]:
    tried = [attacks.parse(spec) for spec in subject.measures.alone]
    budgets = {(t.norm, float(t.epsilon)) for t in tried if t.budget is not None}
    for name, model in subject.surrogates.items():
        transfer = Transfer(source=batched(model), via=name, steps=TRANSFERRED)
        tried += [
            Trial(transfer, Budget(norm, round(epsilon, 7)))
            for norm, epsilon in sorted(budgets)
        ]
    return tried


def ensemble(subject: Subject, classes: int) -> list[Trial]:
    """AutoAttack at each budget of a subject."""
    return [
        trial
        for norm, epsilon in sorted(subject.measures.budgets)
        for trial in attacks.autoattack(Budget(norm, epsilon), classes=classes)
    ]


def _attacked(
    subject: Subject, name: str, tried: Sequence[Trial], folder: Path, progress: bool
) -> tuple[dict[str, Any], dict[tuple[str, float], Bool[np.ndarray, " n"]]]:
    """The summary of attacks, each on all images, or of AutoAttack, in turn; and which
    images are robust in each budget."""
    together = name == "ensemble"
    wanted = subject.measures
    count = wanted.num_ensemble if together else wanted.num_alone
    arguments = {
        "the cell": subject.settings(),
        "the attacks": described(tried),
        "the versions": versions(),
    }
    with Store(folder / "measured" / name, arguments) as store:
        seen = evaluate(
            batched(subject.classifier),
            subject.images[:count],
            subject.labels[:count],
            tried,
            successive=together,
            keep=store.attack,
            progress=progress,
        )
    outcome, seen = seen.outcome, seen.summary
    masks = worst_masks(seen["attacks"], outcome.robust)
    flags = seen["flags"]
    if isinstance(subject.model, ODEClassifier):
        flags = [*flags, *checks.adjoint(subject.model.solver)["flags"]]
    names = ("num_examples", "clean_accuracy", "attacks", "worst_case")
    return {**{name: seen[name] for name in names}, "flags": flags}, masks


def _robust(budget: tuple[str, float], mask: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    """Robust accuracy in a budget with its 95 % interval, and the robust images."""
    return {
        "norm": budget[0],
        "epsilon": budget[1],
        "robust_accuracy": float(np.mean(mask)),
        "interval": interval(int(np.sum(mask)), len(mask)),
        "num_examples": len(mask),
        "right": packed(mask),
    }
