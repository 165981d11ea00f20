"""What the trajectory does for a Linf certificate: python benchmarks/linf.py RUN.

Certifies the model of a run by intervals on the test images, and attacks some of them
with AutoAttack in the same norm. Then leaves out its ODE blocks, y(1) = y(0): with the
trained head, and with a head that was trained by the same loss without them, which is a
linear classifier. Writes benchmarks/results/linf-DATA-RADIUS-of-RADIUS.json, named by
the certified radius and that of the training, and linf.md, the table of all such files.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import jnode
from jnode import attacks, data
from jnode._process import run, versions
from jnode.attacks import Budget
from jnode.certify import linf_certified_accuracy
from jnode.constraints import plain
from jnode.evaluation import evaluate
from jnode.models import ODEBlock, ODEClassifier
from jnode.models.batched import batched
from jnode.train import RunDir, ibp, training_images

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Args:
    """Certifies and attacks a run in Linf, with its trajectory and without."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """A run trained with loss ibp."""

    epsilon: float | None = None
    """The Linf radius, by default that of the training."""

    attacked: int = 1000
    """Test images for AutoAttack."""

    epochs: int = 3
    """Of the head without a trajectory."""

    batch_size: int = 200
    """Of its training."""


def without_blocks(model: ODEClassifier) -> ODEClassifier:
    """The model with y(1) = y(0): the fields of its blocks are 0."""
    nothing = jnode.Certified(
        lambda t, y, args=None: 0 * y, bounds=lambda fn: jnode.Bounds(0.0)
    )
    layers = [
        ODEBlock(nothing, layer.solver, layer.t0, layer.t1)
        if isinstance(layer, ODEBlock)
        else layer
        for layer in model.layers
    ]
    return ODEClassifier(layers, model.head, model.image_shape)


def retrained(model: ODEClassifier, epsilon: float, args: Args) -> ODEClassifier:
    """The model with its head trained anew by the ibp loss; its radius ramps up over
    the first epoch."""
    config, _ = RunDir(args.run_dir).read_config()
    train, kappa = training_images(config.data), config.loss.kappa
    per_epoch = len(train) // args.batch_size
    total = args.epochs * per_epoch
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, total // 10, total)
    optimizer = optax.adam(schedule)

    @eqx.filter_jit
    def step(head, state, images, labels, share):
        def loss(head):
            whole = eqx.tree_at(lambda m: m.head, model, head)
            radii = jnp.full(len(labels), epsilon) * share
            worst, _ = ibp.worst_entropy(whole, images, labels, radii, 1.0)
            entropy = optax.softmax_cross_entropy_with_integer_labels
            clean = entropy(batched(whole)(images), labels)
            return jnp.mean(kappa * clean + (1 - kappa) * worst)

        updates, state = optimizer.update(eqx.filter_grad(loss)(head), state)
        return eqx.apply_updates(head, updates), state

    head = jax.tree.map(lambda x: 0 * x if eqx.is_inexact_array(x) else x, model.head)
    state = optimizer.init(eqx.filter(head, eqx.is_inexact_array))
    for epoch in range(args.epochs):
        batches = data.batches(train, args.batch_size, seed=0, epoch=epoch)
        for k, (images, labels) in enumerate(batches):
            images = data.to_float(jnp.asarray(images))
            share = jnp.minimum((epoch * per_epoch + k) / per_epoch, 1.0)
            head, state = step(head, state, images, jnp.asarray(labels), share)
    return eqx.tree_at(lambda m: m.head, model, head)


def accuracies(model, images, labels, epsilon: float) -> dict[str, float]:
    """Clean and certified accuracy."""
    start = time.perf_counter()
    (row,) = linf_certified_accuracy(model, images, labels, (epsilon,))
    seconds = time.perf_counter() - start
    seen = evaluate(batched(plain(model)), images, labels, (), progress=False)
    return {
        "clean_accuracy": seen.summary["clean_accuracy"],
        "certified_accuracy": row["certified_accuracy"],
        "seconds": seconds,
    }


def movement(model: ODEClassifier, images) -> float:
    """How far the blocks move the state, a mean over the images: the distance of y(1)
    from y(0) over the norm of y(0)."""
    still = without_blocks(model)
    ends, starts = (
        np.asarray(jax.vmap(m.embed)(jnp.asarray(images[:1000])))
        for m in (model, still)
    )
    ends, starts = (x.reshape(len(x), -1) for x in (ends, starts))
    apart = np.linalg.norm(ends - starts, axis=1) / np.linalg.norm(starts, axis=1)
    return float(np.mean(apart))


def main(args: Args) -> None:
    run_dir = RunDir(args.run_dir)
    config, _ = run_dir.read_config()
    epsilon = config.loss.epsilon if args.epsilon is None else args.epsilon
    model = jnode.load(args.run_dir)
    test = data.load(config.data.name, split="test")
    images = np.asarray(data.to_float(jnp.asarray(test.images)))
    some, whole = slice(args.attacked), model.bake()
    still = without_blocks(whole)
    rows: dict[str, Any] = {"trajectory": whole, "none": still}
    rows["linear"] = retrained(still, epsilon, args)
    rows = {k: accuracies(m, images, test.labels, epsilon) for k, m in rows.items()}
    print(rows, flush=True)
    last = json.loads(run_dir.metrics.read_text().splitlines()[-1])
    trials = attacks.autoattack(Budget("linf", epsilon))
    seen = evaluate(
        batched(whole), images[some], test.labels[some], trials, successive=True
    )
    (worst,) = seen.summary["worst_case"]
    facts = {
        "dataset": config.data.name,
        "epsilon": epsilon,
        "epochs": config.epochs,
        "radius_in_training": config.loss.epsilon,
        "training": last["certified"],
        "examples": len(test),
        "rows": rows,
        "attacked": len(test.labels[some]),
        "autoattack": worst["robust_accuracy"],
        "movement": movement(whole, images),
        "flags": seen.summary["flags"],
        "versions": versions(),
    }
    name = f"linf-{config.data.name}-{epsilon:.3g}-of-{config.loss.epsilon:.3g}.json"
    path = RESULTS / name
    path.write_text(json.dumps(facts, indent=1) + "\n")
    found = [json.loads(x.read_text()) for x in sorted(RESULTS.glob("linf-*.json"))]
    (RESULTS / "linf.md").write_text(table(found))
    print(table(found))


def table(found: list[dict[str, Any]]) -> str:
    """A row for each model."""
    lines = [
        "| data | radius | radius in training | epochs | clean | certified | "
        "certified in training | left by AutoAttack | certified with y(1) = y(0) | "
        "with a head trained for that | movement | flags |",
        "| --- |" + " ---: |" * 11,
    ]
    for f in found:
        clean = 100 * f["rows"]["trajectory"]["clean_accuracy"]
        whole, still, linear = (
            f"{100 * f['rows'][name]['certified_accuracy']:.1f}"
            for name in ("trajectory", "none", "linear")
        )
        lines.append(
            f"| {f['dataset']} | {f['epsilon']:.3g} | {f['radius_in_training']:.3g} | "
            f"{f['epochs']} | {clean:.1f} | "
            f"{whole} | {100 * f['training']:.1f} | {100 * f['autoattack']:.1f} of "
            f"{f['attacked']:,} | {still} | {linear} | {f['movement']:.2f} | "
            f"{len(f['flags'])} |"
        )
    flags = [
        f"{f['dataset']}, trained at {f['radius_in_training']:.3g}: {x}"
        for f in found
        for x in f["flags"]
    ]
    return "\n".join([*lines, "", *(f"- {flag}" for flag in flags)]).rstrip() + "\n"


if __name__ == "__main__":
    run(lambda: main(tyro.cli(Args, description=__doc__)))
