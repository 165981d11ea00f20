"""Published neural ODEs under one judge: python benchmarks/contest/run.py FOLDER.

Rebuilds published checkpoints in JAX, compares their clean accuracy with the published
one, and attacks each by AutoAttack's standard version, transfers and checks; beside
them are models of this package. FOLDER holds checkouts of the authors' repositories, of
which nothing but the checkpoints is read:

- `TisODE` (github.com/HanshuYAN/TisODE),
- `GAINS` (github.com/eth-sri/GAINS),
- `StructuredNeuralNetworks` (github.com/davidemurari/StructuredNeuralNetworks).

Needs PyTorch, to read checkpoints, and MNIST and CIFAR-10 for TFDS. Each row, a model
and a budget, is written to benchmarks/results/contest.json and .md when it is finished;
rows that are there with as many images are not measured again, and an attack that was
finished before an interruption is taken from WORK.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from checkpoints import test_set
from contestants import CONTESTANTS, Budget, Contestant, Published
from gains import Gains
from table import table

import jnode
from jnode import attacks, certify, data
from jnode._batches import padded_batches
from jnode._files import claimed, write_json
from jnode._process import run, versions
from jnode.attacks.losses import classes_of, logits_of
from jnode.evaluation import Store, Transfer, checks, evaluate, surrogates
from jnode.evaluation.store import described, fingerprint
from jnode.study.tables import amount

JSON = Path(__file__).parent.parent / "results" / "contest.json"
BATCH = 250
LEVELS = (50 / 255, 75 / 255, 100 / 255)


@dataclasses.dataclass(frozen=True)
class Args:
    """Attacks published neural ODEs and this package's models alike."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder that holds checkouts of the authors' repositories."""

    only: tuple[str, ...] = ()
    """Names of contestants or papers; by default all."""

    images: int = 500
    """Test images to attack."""

    clean: int = 10_000
    """Test images for clean and certified accuracy."""

    budgets: tuple[str, ...] = ()
    """Only these, such as linf:0.3 or l2:36/255; by default each contestant's."""

    batch_size: int = 100
    """Images that are attacked at a time."""

    work: Path = Path("runs/contest")
    """Where finished attacks are kept until their row is complete."""

    data_dir: str | None = None
    """The TFDS folder; by default TFDS_DATA_DIR."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    for one in chosen(args):
        entry = read().get(one.name, {"rows": {}})
        todo = [
            b for b in one.budgets if asked(b, args) and left(entry, b, args.images)
        ]
        unknown = entry.get("num_clean", 0) < args.clean
        if not todo and not unknown:
            continue
        model = one.make(args.folder / one.repository)
        test = test_set(one.dataset, args.data_dir)
        if unknown:
            write(one.name, facts(one, model, test.take(args.clean)), {}, args.work)
        for budget in todo:
            row = attacked(one, model, test, budget, args)
            write(one.name, {}, {label(budget): row}, args.work)
    print(table(read()))


def read() -> dict:
    """The results so far."""
    return json.loads(JSON.read_text()) if JSON.is_file() else {}


def write(name: str, found: dict, rows: dict, work: Path) -> None:
    """Adds facts and rows of a contestant to both files of the results."""
    # Read again, since another process may have finished a row.
    work.mkdir(parents=True, exist_ok=True)
    with claimed(work / ".results.lock", wait=True):
        results = read()
        entry = results.setdefault(name, {"rows": {}})
        entry |= found
        entry["rows"] |= rows
        # In the order of the list, and with its published figures.
        results = {c.name: results[c.name] for c in CONTESTANTS if c.name in results}
        for one in CONTESTANTS:
            if one.name in results:
                stated = [dataclasses.asdict(p) for p in one.published]
                results[one.name]["published"] = stated
        write_json(JSON, results)
        JSON.with_suffix(".md").write_text(table(results))


def chosen(args: Args) -> list[Contestant]:
    """The contestants that were asked for.

    **Raises:** `ValueError` for a name that nobody has.
    """
    known = {c.name for c in CONTESTANTS} | {c.paper for c in CONTESTANTS}
    for name in args.only:
        if name not in known:
            raise ValueError(
                f"only must be among {', '.join(sorted(known))}, not {name!r}."
            )
    named = lambda c: not args.only or {c.name, c.paper} & set(args.only)
    return [c for c in CONTESTANTS if named(c)]


def label(budget: Budget) -> str:
    """A budget as the command line has it."""
    norm, epsilon = budget
    return f"{norm}:{amount(epsilon)}"


def asked(budget: Budget, args: Args) -> bool:
    """Whether the command line left this budget in."""
    return not args.budgets or label(budget) in args.budgets


def left(entry: dict, budget: Budget, images: int) -> bool:
    """Whether a row is missing, or had fewer images."""
    return entry["rows"].get(label(budget), {}).get("num_examples", 0) < images


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
    return found | certified(model, images, test.labels)


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
    return sum(leaf.size for leaf in leaves)


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


def certified(model: Callable, images, labels) -> dict[str, Any]:
    """The Lipschitz constant and the images' certified radii, or why there are none."""
    if not isinstance(model, jnode.ODEClassifier):
        return {"certificate": "its steps depend on the image"}
    refusal = certify.refusal(model)
    if refusal is not None:
        return {"certificate": "normalisation layers have no Lipschitz bound"}
    radii = certify.certified_radii(model, images, labels, batch_size=BATCH)
    bounds = model.bounds()
    return {
        "certificate": "L2",
        "lipschitz": float(bounds.lipschitz),
        "lipschitz_of_layers": [float(x) for x in bounds.layers],
        "radii": [round(float(r), 6) for r in radii],
    }


def attacked(
    one: Contestant, model: Callable, test: data.Dataset, budget: Budget, args: Args
) -> dict[str, Any]:
    """AutoAttack, then transfers, each on what is still robust; and the checks."""
    start = time.perf_counter()
    some = test.take(args.images)
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
    place = args.work / one.name.replace(" ", "-") / label(budget).replace("/", "_")
    with Store(place, arguments) as store:
        found = evaluate(
            whole,
            images,
            some.labels,
            tried,
            batch_size=min(args.batch_size, len(some)),
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
        "flags": flags,
        "checks": found["checks"] | checked,
        "seconds": round(time.perf_counter() - start),
        "versions": versions(),
    }


if __name__ == "__main__":
    run(main)
