"""Certified accuracy of adaptive solves on MNIST: python benchmarks/adaptive_mnist.py.

Trains an Ortho and a contractive model with Heun-Euler and Bosh3 on the ladder; finds
the two largest tolerances at which images part (the commonest grid is taken by less
than 90 % of them); certifies all test images over every path of steps, beside the
commonest grid frozen; and attacks the certified balls by the margin and by the
decisions. Runs go into a folder, where an interrupted call resumes; rows into
benchmarks/results/adaptive_mnist.json and .md.
"""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Annotated, Any

import adaptive_hunt
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro

import jnode
from jnode import certify, data
from jnode._files import write_json
from jnode._process import run, versions
from jnode.certify.survey import survey, taken
from jnode.constraints import plain
from jnode.data import Dataset
from jnode.models import ModelConfig
from jnode.solvers import Solver
from jnode.train import DataConfig, LossConfig, TrainConfig, train, training_images

RESULTS = Path(__file__).parent / "results"
RADII = (0.25, 0.5, 1.0)
TOLERANCES = tuple(10.0 ** (-k / 4) for k in range(2, 15))
"""From 0.3 to 0.0003; rtol and atol are equal."""
_WIDE: Any = {"features": 64, "position": True}
FIELDS = {
    "ortho": ModelConfig("ortho", lipschitz=1.0, activation="maxmin", **_WIDE),
    # The longest steps that circle contractivity allows of Heun's method: h L = 2.
    "contractive": ModelConfig("gradient_flow", lipschitz=2.0, hidden=64, **_WIDE),
}
METHODS = ("heun", "bosh3")
STEPS = 20
"""Steps of each attack."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Trains, certifies and attacks adaptive models on MNIST."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Where the runs lie, or will."""

    epochs: int = 4
    """Of each training."""

    examples: int | None = None
    """Test images to certify, by default all."""

    attacked: int = 1000
    """How many of them to attack."""

    fields: tuple[str, ...] = tuple(FIELDS)
    """Which models."""

    methods: tuple[str, ...] = METHODS
    """Which methods."""

    tolerance: float = 1e-2
    """That of training."""


def ladder(method: str, tolerance: float) -> Solver:
    """The ladder that is trained, certified and attacked."""
    return Solver(
        method, rtol=tolerance, atol=tolerance, controller="ladder", max_steps=64
    )


def trained(field: str, method: str, args: Args) -> tuple[Path, TrainConfig]:
    """The run of a model, trained if it is not there."""
    config = TrainConfig(
        data=DataConfig("mnist", pad=1),
        model=FIELDS[field],
        solver=ladder(method, args.tolerance),
        loss=LossConfig("natural", logit_scale=4.0),
        epochs=args.epochs,
        batch_size=200,
        learning_rate=1e-2,
        weight_decay=0.0,
    )
    folder = args.folder / f"{field}-{method}"
    if not (folder / "model.eqx").exists():
        train(config, folder, resume=folder.exists(), checkpoint_every=100)
    return folder, config


def parting(model: jnode.ODEClassifier, method: str, some: Dataset) -> list[float]:
    """The two largest tolerances at which less than 90 % of the images take the
    commonest grid."""
    images, found = pixels(some), []
    for tolerance in TOLERANCES:
        grids = taken(model.with_solver(ladder(method, tolerance)), images)
        counts = np.unique(grids, axis=0, return_counts=True)[1]
        if np.max(counts) < 0.9 * len(images):
            found.append(tolerance)
        if len(found) == 2:
            break
    return found


def pixels(some: Dataset) -> np.ndarray:
    return np.asarray(data.to_float(jnp.asarray(some.images)))


@eqx.filter_jit
def attacked(model, images, radii, mode, keys):
    """Whether each image's prediction changed, and whether its grid did."""
    model = plain(model)

    def one(image, radius, key):
        found = adaptive_hunt.search(model, image, radius, mode, key, STEPS)
        records = [adaptive_hunt.embedded(model, x)[1] for x in (image, found)]
        differ = [
            jnp.any(records[0][name] != records[1][name])
            for name in ("position", "level")
        ]
        changed = jnp.argmax(model(image)) != jnp.argmax(model(found))
        # What lies outside the ball, by the rounding of the projection, is no attack.
        inside = jnp.sqrt(jnp.sum((found - image) ** 2)) <= radius / 0.999
        return changed & inside, differ[0] | differ[1]

    return jax.vmap(one)(images, radii, keys)


def attacks(model, images, radii) -> dict[str, int]:
    """Attacks at 0.999 of each radius: by the margin, the decisions, and both."""
    sure = np.flatnonzero(radii > 0)
    changed, moved = (np.zeros(len(sure), bool) for _ in range(2))
    size = min(100, len(sure))
    for index, mode in itertools.product(range(0, len(sure), size), range(3)):
        rows = np.resize(sure[index : index + size], size)  # repeats fill the last
        keys = jr.split(jr.fold_in(jr.key(mode), index), size)
        ball = jnp.asarray(0.999 * radii[rows])
        found = attacked(model, jnp.asarray(images[rows]), ball, mode, keys)
        kept = slice(index, index + size)
        for seen, new in zip((changed, moved), found, strict=True):
            seen[kept] |= np.asarray(new)[: len(seen[kept])]
    return {
        "attacked": len(sure),
        "changed_predictions": int(np.sum(changed)),
        "changed_grids": int(np.sum(moved)),
    }


def row_of(folder: Path, method: str, tolerance: float, test: Dataset, args) -> dict:
    """The certificate of a trained model at a tolerance, and attacks on it."""
    model = jnode.load(folder).with_solver(ladder(method, tolerance))
    images, labels = pixels(test), test.labels
    radii = certify.certified_radii(model, images, labels)
    # Of wrong predictions, too, the ball is certified; here only right ones are tried.
    some = slice(args.attacked)
    return {
        "tolerance": tolerance,
        "examples": len(test),
        "clean_accuracy": float(np.mean(radii >= 0)),
        "certified_accuracy": certify.certified_accuracy(radii, RADII),
        "median_radius": float(np.median(radii)),
        **(survey(model, images, labels, RADII, 500) or {}),
        **attacks(model, images[some], radii[some]),
    }


def main(args: Args) -> None:
    path = args.folder / "rows.json"
    args.folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    test = data.load("mnist", split="test")
    test = test if args.examples is None else test.take(args.examples)
    for field, method in itertools.product(args.fields, args.methods):
        folder, config = trained(field, method, args)
        seen = training_images(config.data).take(1000)
        for tolerance in parting(jnode.load(folder), method, seen):
            name = f"{field} {method} {tolerance:.2g}"
            if name not in rows:
                found = row_of(folder, method, tolerance, test, args)
                rows[name] = {"field": field, "method": method, **found}
                write_json(path, rows)
            print(name, rows[name], flush=True)
    facts = {"rows": list(rows.values()), "epochs": args.epochs, "versions": versions()}
    (RESULTS / "adaptive_mnist.json").write_text(json.dumps(facts, indent=1) + "\n")
    (RESULTS / "adaptive_mnist.md").write_text(table(list(rows.values())))


def table(rows: list[dict[str, Any]]) -> str:
    """Certified beside frozen accuracy, and what the certificate costs."""
    lines = [
        "| field | method | tolerance | clean | certified at L2 0.25, 0.5, 1 | "
        "commonest grid frozen | grids | commonest | attempts an image | ms an image | "
        "attacked balls | whose grid changed | changed predictions |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | "
        "---: | ---: |",
    ]
    for r in rows:
        shares = [
            " / ".join(f"{100 * x['certified_accuracy']:.1f}" for x in r[name])
            for name in ("certified_accuracy", "frozen")
        ]
        lines.append(
            f"| {r['field']} | {r['method']} | {r['tolerance']:.2g} | "
            f"{100 * r['clean_accuracy']:.1f} | {shares[0]} | {shares[1]} | "
            f"{r['paths']} | {r['commonest_share']:.0%} | {r['attempts']:.1f} | "
            f"{r['milliseconds']:.1f} | {r['attacked']} | {r['changed_grids']} | "
            f"{r['changed_predictions']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(lambda: main(tyro.cli(Args, description=__doc__)))
