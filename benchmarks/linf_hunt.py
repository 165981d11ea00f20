"""Tries to refute enclosures of Linf balls: python benchmarks/linf_hunt.py.

Random models of several fields and methods, in float32 and float64; of every second one
the weights are then trained to break its bounds. For each image a search looks for the
pixels in its ball that drive one feature as far as possible towards an end of its
interval. The ratio of that distance to the interval's half width must be at most 1. A
ratio above 0.98 would refute an interval that is 2 % narrower; how many there are shows
what the search can do. Writes linf_hunt.json and .md into benchmarks/results.
"""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro

import jnode
from jnode._process import run, versions
from jnode.certify import linf
from jnode.certify.enclosures import Arithmetic
from jnode.constraints import plain
from jnode.solvers import Solver

RESULTS = Path(__file__).parent / "results"
SHAPE = (4, 4, 1)
EPSILONS = (0.001, 0.02, 0.2)
_SMALL: dict[str, Any] = {"patch": 2, "features": 6, "hidden": 4}
FIELDS = {
    "free, relu": jnode.ModelConfig("free", kernel_size=1, unit_norm=False, **_SMALL),
    "free, tanh, time": jnode.ModelConfig(
        "free", activation="tanh", time=True, unit_norm=False, **_SMALL
    ),
    "free, dense last": jnode.ModelConfig(
        "free", kernel_size=1, dense=1, unit_norm=False, **_SMALL
    ),
    "ortho, maxmin": jnode.ModelConfig("ortho", activation="maxmin", **_SMALL),
    "gradient flow": jnode.ModelConfig("gradient_flow", lipschitz=2.0, **_SMALL),
}
METHODS = ("euler", "heun")


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes a table of attacks on the intervals of features."""

    seeds: int = 16
    """Weights for each field, method and type; every second one is trained."""

    images: int = 16
    """Images for each."""

    steps: int = 20
    """Steps of the search, and of the training."""


def distances(model, images, epsilon, sides, steps: int):
    """Each image's ratio, and whether any of its features left its interval.

    `sides` chooses by its largest entry the feature, and by the sign the end.
    """
    model, arithmetic = plain(model), Arithmetic()
    found = linf.embedding(model, images, epsilon, arithmetic)
    reach, features = arithmetic.reach(found), jax.vmap(model.embed)
    low, high = jnp.maximum(images - epsilon, 0), jnp.minimum(images + epsilon, 1)
    largest = jnp.max(jnp.abs(sides), axis=1, keepdims=True)
    wanted = jnp.where(jnp.abs(sides) == largest, jnp.sign(sides), 0)

    def body(i, x):
        slope = jax.grad(lambda x: jnp.sum(wanted * features(x)))(x)
        # First to a corner of the ball, then by steps that shrink.
        return jnp.clip(x + 2 * epsilon / (1 + i) * jnp.sign(slope), low, high)

    x = jax.lax.stop_gradient(jax.lax.fori_loop(0, steps, body, images))
    moved = features(x) - found.centre
    # A feature that no pixel moves has a ratio of 0, and no slope that overflows.
    allowed = jnp.maximum(jnp.sum(jnp.abs(wanted) * reach, axis=1), 1e-12)
    ratio = jnp.sum(wanted * moved, axis=1) / allowed
    return ratio, jnp.any(jnp.abs(moved) > reach, axis=1)


@eqx.filter_jit
def hunted(config, solver, dtype, key, epsilon, trained, args):
    """The ratios of a random model's images, and which features left their interval.

    If `trained`, its weights first ascend on the mean ratio.
    """
    keys, how = jr.split(key, 5), {"image_shape": SHAPE, "classes": 3}
    model = jnode.build(config, solver, key=keys[0], **how)
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    arrays = jax.tree.map(lambda x: x.astype(dtype), arrays)
    leaves = jax.tree.leaves(arrays)
    noise = [
        0.3 * jr.normal(jr.fold_in(keys[1], i), x.shape, dtype)
        for i, x in enumerate(leaves)
    ]
    # Biases too, which begin at zero.
    arrays = eqx.apply_updates(
        arrays, jax.tree.unflatten(jax.tree.structure(arrays), noise)
    )
    images = jr.uniform(keys[2], (args.images, *SHAPE), dtype)
    epsilon = epsilon.astype(dtype)
    size = jax.eval_shape(model.embed, images[0].astype(jnp.float32)).size
    sides = jr.normal(keys[3], (args.images, size), dtype)

    def ascend(i, arrays):
        def mean(arrays):
            model = eqx.combine(arrays, rest)
            return jnp.mean(distances(model, images, epsilon, sides, 3)[0])

        slopes = jax.grad(mean)(arrays)
        size = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(slopes)) + 1e-12)
        rate = jnp.where(trained, 0.1, 0).astype(dtype)
        return jax.tree.map(lambda w, g: w + rate * g / size, arrays, slopes)

    arrays = jax.lax.fori_loop(0, args.steps, ascend, arrays)
    whole = eqx.combine(arrays, rest)
    return distances(whole, images, epsilon, sides, args.steps)


def row_of(kind: str, method: str, dtype, args: Args) -> dict[str, Any]:
    """The instances of a field, a method and a type."""
    config, ratios, left = FIELDS[kind], [], 0
    steps = 2 if config.dense else 1
    solver = Solver(method, steps=steps)
    for seed in range(args.seeds):
        epsilon = jnp.asarray(EPSILONS[seed % len(EPSILONS)])
        trained = jnp.asarray(seed % 2 == 1)
        inputs = (config, solver, dtype, jr.key(seed), epsilon, trained, args)
        ratio, out = hunted(*inputs)
        ratios.append(np.asarray(ratio, np.float64))
        left += int(np.sum(out))
    every = np.concatenate(ratios)
    return {
        "field": kind,
        "method": method,
        "dtype": np.dtype(dtype).name,
        "instances": args.seeds,
        "intervals": every.size,
        "left": left,
        "largest": float(np.max(every)),
        "median": float(np.median(every)),
        "tight": int(np.sum(every > 0.98)),
    }


def main(args: Args) -> None:
    rows = []
    for dtype, kind, method in itertools.product(
        (jnp.float32, jnp.float64), FIELDS, METHODS
    ):
        with (
            jax.enable_x64(dtype == jnp.float64),
            jax.default_matmul_precision("highest"),
        ):
            rows.append(row_of(kind, method, dtype, args))
            print(rows[-1], flush=True)
        write(rows, args)
    if any(r["left"] for r in rows):
        raise SystemExit("An enclosure was refuted.")


def write(rows: list[dict[str, Any]], args: Args) -> None:
    """Writes the rows that there are, as JSON and as a table."""
    found = {"rows": rows, **dataclasses.asdict(args), "versions": versions()}
    (RESULTS / "linf_hunt.json").write_text(json.dumps(found, indent=1) + "\n")
    instances = sum(r["instances"] for r in rows)
    lines = [
        f"{instances} models; features outside of their interval: "
        f"{sum(r['left'] for r in rows)}. {sum(r['tight'] for r in rows)} of "
        f"{sum(r['intervals'] for r in rows)} intervals would be refuted if they were "
        "2 % narrower.",
        "",
        "| field | method | type | models | intervals | largest ratio | median ratio | "
        "above 0.98 | left |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {r['field']} | {r['method']} | {r['dtype']} | {r['instances']} | "
        f"{r['intervals']} | {r['largest']:.4f} | {r['median']:.3f} | {r['tight']} | "
        f"{r['left']} |"
        for r in rows
    ]
    (RESULTS / "linf_hunt.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    run(lambda: main(tyro.cli(Args, description=__doc__)))
