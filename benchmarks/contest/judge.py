"""What is measured of a contestant: accuracies, certificate, time, and attacks."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from contestants import Budget, Contestant, Published
from gains import Gains

import jnode
from jnode import attacks, certify, data
from jnode._batches import padded_batches
from jnode._process import versions
from jnode.attacks.losses import classes_of, logits_of
from jnode.certify.search import tightness
from jnode.evaluation import Store, Transfer, checks, evaluate, surrogates
from jnode.evaluation.store import described, fingerprint
from jnode.models import shipped
from jnode.study.tables import amount

BATCH = 250
LEVELS = (50 / 255, 75 / 255, 100 / 255)


def label(budget: Budget) -> str:
    """A budget as the command line has it."""
    norm, epsilon = budget
    return f"{norm}:{amount(epsilon)}"


def facts(one: Contestant, model: Callable, test: data.Dataset) -> dict[str, Any]:
    """What does not depend on a budget: accuracies, size and time."""
    images = np.asarray(data.to_float(test.images))
    right = classes_of(predicted(model, images)) == test.labels
    found: dict[str, Any] = {
        "paper": one.paper,
        "dataset": one.dataset,
        "num_clean": len(test),
        "clean_accuracy": float(np.mean(right)),
        "parameters": parameters(model),
        "ms_per_image": milliseconds(model, images[:BATCH]),
        "versions": versions(),
    }
    if one.published:
        found["clean_as_published"] = clean_as_published(
            one.published[0], model, images, test.labels, right
        )
    return found | certified(one, model, images, test.labels)


def ours(one: Contestant, test: data.Dataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts and rows of a model of the package, from its card; only time is measured.

    The card has AutoAttack's result where benchmarks/card_attacks.py was run, and that
    of PGD with 40 steps otherwise.
    """
    card = shipped.card(one.name)
    images = np.asarray(data.to_float(test.images[:BATCH]))
    found = {
        "paper": one.paper,
        "dataset": one.dataset,
        "num_clean": card["num_examples"],
        "clean_accuracy": card["clean_accuracy"],
        "parameters": card["parameters"],
        "ms_per_image": milliseconds(jnode.pretrained(one.name), images),
        "certificate": "L2",
        "lipschitz": card["lipschitz"]["certified_upper_bound"],
        "certified_accuracy": card["certified_accuracy"],
        "versions": versions(),
    }
    pgd, rows = card["attacked"], {}
    tried = [("PGD-40", r | {"num_examples": pgd["num_examples"]}) for r in pgd["rows"]]
    tried += [("AutoAttack", row) for row in card["autoattack"]]
    for attack, row in tried:
        worst = {"norm": "l2", "epsilon": round(row["radius"], 7)}
        worst["robust_accuracy"] = row["robust_accuracy"]
        rows[label(("l2", row["radius"]))] = {
            "attack": attack,
            "num_examples": row["num_examples"],
            "worst_case": [worst],
            "flags": pgd["flags"],
        }
    return found, rows


def predicted(model: Callable, images: np.ndarray) -> np.ndarray:
    """The logits of all images."""
    whole = jnode.batched(model)
    parts = [
        np.asarray(logits_of(whole, jnp.asarray(x)))[mask]
        for _, (x,), mask in padded_batches((images,), BATCH)
    ]
    return np.concatenate(parts)


def clean_as_published(
    published: Published,
    model: Callable,
    images: np.ndarray,
    labels: np.ndarray,
    right: np.ndarray,
) -> float:
    """Clean accuracy on those images on which the published figure was measured."""
    if published.noisy:
        return float(
            np.mean(classes_of(predicted(model, noisy_half(images))) == labels)
        )
    return float(np.mean(right[: published.first]))


def noisy_half(images: np.ndarray) -> np.ndarray:
    """Each image with probability 1/2 under Gaussian noise of one of three levels.

    The test images of TisODE's training logs.
    """
    rng = np.random.default_rng(0)
    n, one = len(images), (-1, 1, 1, 1)
    level = rng.choice(LEVELS, n) * rng.integers(0, 2, n)
    noise = rng.standard_normal(images.shape).astype(np.float32)
    return np.clip(images + level.reshape(one).astype(np.float32) * noise, 0, 1)


def parameters(model: Callable) -> int:
    """The number of weights; those that the constraints of ours act on."""
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    # Those that are used twice are counted once.
    return sum({id(leaf): leaf.size for leaf in leaves}.values())


def milliseconds(model: Callable, images: np.ndarray) -> float:
    """Milliseconds for each image of a batch; the least of five runs."""
    whole, x, times = jnode.batched(baked(model)), jnp.asarray(images), []
    for _ in range(6):
        start = time.perf_counter()
        logits_of(whole, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times[1:]) / len(x)


def baked(model: Callable) -> Callable:
    """Ours with plain matrices; the others have no constraints."""
    return model.bake() if isinstance(model, jnode.ODEClassifier) else model


def certified(one: Contestant, model: Callable, images, labels) -> dict[str, Any]:
    """The Lipschitz constant and certified accuracy, or why there are none."""
    if not isinstance(model, jnode.ODEClassifier):
        return {"certificate": "its steps depend on the image"}
    refusal = certify.refusal(model)
    if refusal is not None:
        return {"certificate": "normalisation layers have no Lipschitz bound"}
    radii = certify.certified_radii(model, images, labels, batch_size=BATCH)
    bounds = model.bounds()
    balls = sorted(epsilon for norm, epsilon in one.budgets if norm == "l2")
    return {
        "certificate": "L2",
        "lipschitz": float(bounds.lipschitz),
        "lipschitz_of_layers": [float(x) for x in bounds.layers],
        "lipschitz_found": tightness(model, images[:2], seed=0)[
            "empirical_lower_bound"
        ],
        "certified_accuracy": certify.certified_accuracy(radii, balls),
        "largest_radius": float(np.max(radii)),
    }


def attacked(
    model: Callable,
    some: data.Dataset,
    budget: Budget,
    *,
    batch_size: int,
    place: Path,
) -> dict[str, Any]:
    """AutoAttack, then transfers, each on what is still robust; and the checks.

    Finished attacks are kept in the folder `place`, for an interrupted run.
    """
    start = time.perf_counter()
    images, model = np.asarray(data.to_float(some.images)), baked(model)
    whole, within = jnode.batched(model), attacks.Budget(*budget)
    relative = model.relative if isinstance(model, Gains) else model
    through = surrogates(relative, images, some.labels)
    tried = [*attacks.autoattack(within)]
    tried += [
        attacks.Trial(Transfer(source=source, via=via), within)
        for via, source in through.items()
    ]
    weights = [np.asarray(x) for x in jax.tree.leaves(eqx.filter(model, eqx.is_array))]
    arguments = {
        "the model": fingerprint(*weights),
        "the data": fingerprint(images, some.labels),
        "the attacks": described(tried),
        "the versions": versions(),
    }
    with Store(place, arguments) as store:
        found = evaluate(
            whole,
            images,
            some.labels,
            tried,
            batch_size=min(batch_size, len(some)),
            successive=True,
            keep=store.attack,
        ).summary
        x, y = jnp.asarray(images[:64]), jnp.asarray(some.labels[:64])
        more = {
            "gradient": lambda: checks.gradient(whole, x, y, seed=0),
            "batch_independence": lambda: checks.batch_independence(whole, x, seed=0),
        }
        checked = {name: store.check(name, make) for name, make in more.items()}
    flags = [*found["flags"], *(f for c in checked.values() for f in c["flags"])]
    return found | {
        "attack": "AutoAttack, transfers",
        "flags": flags,
        "checks": found["checks"] | checked,
        "seconds": round(time.perf_counter() - start),
        "versions": versions(),
    }
