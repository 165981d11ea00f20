"""Robust accuracy under attacks, and flags for results that are not to be trusted."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from jnode._batches import padded_batches
from jnode.attacks import Attacked, Outcome, Trial, run
from jnode.attacks.inputs import Classes
from jnode.attacks.loop import Keep
from jnode.attacks.trial import Pair, as_trial
from jnode.evaluation.gradient_checks import outputs
from jnode.models.batched import batched

if TYPE_CHECKING:
    from jnode.models import ODEClassifier


class Evaluation(NamedTuple):
    """The result of `evaluate`: the outcome for each image, and a summary for JSON."""

    outcome: Outcome
    summary: dict[str, Any]


def evaluate(
    model: Callable,
    images: ArrayLike,
    labels: Classes,
    trials: Sequence[Pair],
    *,
    batch_size: int = 250,
    seed: int = 0,
    successive: bool = False,
    keep: Keep = lambda number, make: make(),
    progress: bool = True,
    mesh: Mesh | None = None,
) -> Evaluation:
    """Clean accuracy, and robust accuracy under each attack and under all.

    Only samples whose clean image is classified correctly are attacked; others count as
    misclassified. A sample is robust if its attacked image is classified correctly
    too; attacked images are checked against the budget and then classified again. In
    the worst case of a budget a sample is robust only if it is robust to every attack
    in that norm with at most that epsilon.

    **Arguments:** as for `jnode.attacks.run`: images [n, height, width, channels],
    labels [n], and so on, with untargeted attacks that have one epsilon for all images,
    except for

    - `seed`: of the attacks' random numbers.
    - `successive`: by default each attack runs on all samples, so that attacks can be
        compared. If true, a row's robust accuracy is that under this attack and all
        attacks before it.

    **Returns:** an `Evaluation`. Its `summary["flags"]` lists results that look like
    masked gradients. Without images the accuracies are NaN.

    **Raises:** as `jnode.attacks.run`; `ValueError` for epsilons of single images.
    """
    trials = [as_trial(trial) for trial in trials]
    if any(trial.epsilon.ndim for trial in trials):
        raise ValueError(
            "epsilon must be one number for all images, not one for each, which "
            "jnode.attacks.run takes."
        )
    options: dict[str, Any] = {"batch_size": batch_size, "mesh": mesh}
    watch: dict[str, Any] = {"keep": keep, "progress": progress, **options}
    own = {"key": jax.random.key(seed), "successive": successive}
    outcome = run(model, images, labels, trials, **own, **watch)
    looked = outputs(model, outcome, **options)
    summary = _numbers(trials, outcome, successive)
    summary |= {
        "seed": seed,
        "checks": {"outputs": looked},
        "flags": [*looked["flags"], *summary["flags"]],
    }
    return Evaluation(outcome, summary)


def _numbers(
    trials: Sequence[Trial], outcome: Outcome, successive: bool
) -> dict[str, Any]:
    """Accuracies, and flags for those that look like masked gradients."""
    n, robust = len(outcome.labels), outcome.robust
    each = zip(trials, outcome.attacked, robust, strict=True)
    rows = [_row(*one) for one in each]
    flags = beaten_white_box(rows, n, successive=successive)
    if not successive:
        flags += weak_beats_strong(rows)
    return {
        "num_examples": n,
        "clean_accuracy": _share(outcome.predictions == outcome.labels),
        "successive": successive,
        "attacks": rows,
        "worst_case": [
            {"norm": norm, "epsilon": epsilon, "robust_accuracy": _share(mask)}
            for (norm, epsilon), mask in worst_masks(rows, robust).items()
        ],
        "flags": flags,
    }


def _row(
    trial: Trial, found: Attacked, robust: Bool[np.ndarray, " n"]
) -> dict[str, Any]:
    return {
        "name": trial.attack.name,
        "via": trial.attack.via,
        "norm": trial.norm,
        "epsilon": round(float(trial.epsilon), 7),
        "steps": int(trial.attack.steps),
        "restarts": trial.attack.restarts,
        "attacked": len(found.samples),
        "successes": len(found.successes),
        "robust_accuracy": _share(robust),
        "seconds": round(float(found.seconds), 3),
    }


def _share(mask: Bool[np.ndarray, " n"]) -> float:
    """The fraction of true entries; NaN for an empty mask."""
    return float(np.mean(mask)) if len(mask) else math.nan


def worst_masks(
    rows: Sequence[dict], robust: Bool[np.ndarray, "trials n"]
) -> dict[tuple[str, float], Bool[np.ndarray, " n"]]:
    """Per norm and epsilon, the samples that are robust to every such attack.

    An attack with a smaller budget counts for larger ones too, and transferred attacks
    count like any other.

    **Arguments:** the rows `attacks` of a summary; `Outcome.robust`.
    """
    return {
        (norm, epsilon): np.logical_and.reduce(
            [
                mask
                for row, mask in zip(rows, robust, strict=True)
                if row["norm"] == norm and row["epsilon"] <= epsilon
            ]
        )
        for norm, epsilon in sorted({(r["norm"], r["epsilon"]) for r in rows})
    }


def interval(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share of which `count` in `total` were observed.

    Accuracies on a few hundred images are uncertain by several points.

    **Raises:** `ValueError` unless 0 <= count <= total and total > 0.
    """
    if not 0 <= count <= total or total == 0:
        raise ValueError(
            f"count must be between 0 and a positive total, not {count} of {total}."
        )
    z, share = 1.959963984540054, count / total
    middle = share + z**2 / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    scale = 1 + z**2 / total
    # Rounding leaves neither end on the wrong side of the share.
    low = min(share, max(0.0, (middle - half) / scale))
    return low, max(share, min(1.0, (middle + half) / scale))


POINTS = 0.002
"""RobustBench's allowance: black-box or transferred images may be misclassified at 0.2
points more of the samples than those of the white-box attacks before them."""
IMAGES = 2
"""The least allowance in images, however few are evaluated."""


def weak_beats_strong(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Flags attacks of few steps that beat those of many.

    The rows are of attacks that ran on all samples (Athalye et al., 2018; Carlini et
    al., 2019).
    """
    flags = []
    for strong in (r for r in rows if r["name"] == "pgd" and not r["via"]):
        for weak in rows:
            same = weak["norm"] == strong["norm"] and not weak["via"]
            if not same or weak["epsilon"] > strong["epsilon"]:
                continue
            fewer = weak["name"] == "pgd" and weak["steps"] < strong["steps"]
            if weak["name"] != "fgsm" and not fewer:
                continue
            gap = strong["robust_accuracy"] - weak["robust_accuracy"]
            if gap > 0.01:
                flags.append(
                    f"masked gradients: {weak['name']}-{weak['steps']} at "
                    f"{weak['norm']} {weak['epsilon']:g} succeeds on {gap:.1%} more "
                    f"samples than {strong['name']}-{strong['steps']} at "
                    f"{strong['epsilon']:g}."
                )
    return flags


def beaten_white_box(
    rows: Sequence[dict[str, Any]], num_examples: int, *, successive: bool
) -> list[str]:
    """Flags black-box or transferred attacks that succeed where no white-box one did.

    If attacks ran one after another, the number of remaining samples on which each one
    succeeded counts; otherwise, how far its accuracy lies below that of the best
    white-box attack.
    """
    if num_examples == 0:
        return []
    flags = []
    allowed = max(POINTS * num_examples, IMAGES)
    for i, row in enumerate(rows):
        if row["name"] != "square" and not row["via"]:
            continue
        white = [
            r
            for j, r in enumerate(rows)
            if (r["norm"], r["epsilon"]) == (row["norm"], row["epsilon"])
            and r["name"] not in ("square", "fgsm")
            and not r["via"]
            and (j < i or not successive)
        ]
        if not white:
            continue
        more = row["successes"]
        if not successive:
            best = min(r["robust_accuracy"] for r in white)
            more = round(num_examples * (best - row["robust_accuracy"]))
        if more > allowed:
            kind = f"transfer via {row['via']}" if row["via"] else row["name"]
            flags.append(
                f"{'transfer' if row['via'] else 'square'} beats white-box: "
                f"{kind} at {row['norm']} {row['epsilon']:g} succeeds on {more} more "
                f"of {num_examples} images than the attacks that follow the model's "
                "gradient."
            )
    return flags


def count_evaluations(
    model: "ODEClassifier",
    images: Float[np.ndarray, "n height width channels"],
    batch_size: int,
) -> Int[np.ndarray, " counts"]:
    """The NFE of each image's solve; a single number if steps are fixed."""
    if not model.solver.adaptive:
        return np.asarray(_evaluations(model, jnp.asarray(images[:1])))
    batches = padded_batches((images,), min(batch_size, len(images)))
    return np.concatenate(
        [
            np.asarray(_evaluations(model, jnp.asarray(x)))[mask]
            for _, (x,), mask in batches
        ]
    )


@eqx.filter_jit
def _evaluations(model, images):
    # Includes solves that stopped at `max_steps`.
    return batched(model).solution(images, throw=False).stats["nfe"]
