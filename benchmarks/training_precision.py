"""What products in bfloat16 cost in training, when the certificate is in full.

    python benchmarks/training_precision.py

Trains presets on the embedded digits under each of `TrainConfig.precision`, and
certifies each model from the same stored weights, in full precision. A CPU multiplies
float32 in full whatever it is asked for, so what a TPU does is emulated: products that
ask for less are lowered to their passes, whose operands are rounded to bfloat16, those
of the gradients included, and summed in float32. Writes
benchmarks/results/training_precision.json and .md. A few minutes on two cores.
"""

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from jax._src.lax.lax import _dot_general_lower  # JAX has no public name for it
from jax.extend.core.primitives import dot_general_p
from jax.interpreters import mlir
from jax.lax import Precision
from jaxtyping import Array, Float

from jnode import certify, data
from jnode._process import run, versions
from jnode.linear.products import PRECISIONS
from jnode.train import get_preset, train

RESULTS = Path(__file__).parent / "results"
PASSES = {Precision.DEFAULT: 1, Precision.HIGH: 3}


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes benchmarks/results/training_precision.json and training_precision.md."""

    presets: tuple[str, ...] = ("contractive",)
    """Which presets to train."""

    epochs: int = 4
    """Epochs of each training, of 31 steps."""

    seeds: int = 2
    """Trainings of each."""

    radii: tuple[float, ...] = (0.5, 1.0)
    """The L2 radii to report."""

    out: str = str(RESULTS / "training_precision")
    """Where to write: OUT.json and OUT.md."""


def bfloat16(x: Float[Array, "..."]) -> Float[Array, "..."]:
    # Not a conversion there and back, which XLA takes out.
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def in_passes(a, b, passes: int, **options) -> Float[Array, "..."]:
    """A product in one or three bfloat16 passes."""
    full = lambda a, b: jax.lax.dot_general(
        a, b, **options, precision=Precision.HIGHEST
    )
    high_a, high_b = bfloat16(a), bfloat16(b)
    product = full(high_a, high_b)
    if passes == 3:
        product += full(high_a, bfloat16(b - high_b))
        product += full(bfloat16(a - high_a), high_b)
    return product


def emulate() -> None:
    """From now on products of float32 are made of as many passes as they ask for."""

    def lower(ctx, a, b, *, precision, **options):
        kinds = set(precision) if isinstance(precision, tuple) else {precision}
        short = {x.dtype for x in ctx.avals_in} == {np.dtype(np.float32)}
        if not short or not kinds <= set(PASSES):
            asked = {"precision": precision, "platform": "cpu"}
            return _dot_general_lower(ctx, a, b, **asked, **options)
        passes = max(PASSES[kind] for kind in kinds)
        how = {k: v for k, v in options.items() if k != "out_sharding"}
        product = lambda a, b: in_passes(a, b, passes, **how)
        return mlir.lower_fun(product, multiple_results=False)(ctx, a, b)

    mlir.register_lowering(dot_general_p, lower, platform="cpu")


def error_of_a_product(precision: str) -> float:
    """How far a product of normal matrices is from the exact one, relatively."""
    a, b = (jr.normal(jr.key(i), (256, 256)) for i in range(2))
    found = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))(a, b)
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def row(preset: str, precision: str, seed: int, args: Args) -> dict:
    """A training, and what is certified of its model."""
    config = dataclasses.replace(
        get_preset(preset), precision=precision, epochs=args.epochs, seed=seed
    )
    test = data.load(split="test")
    images = np.asarray(data.to_float(jnp.asarray(test.images)))
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = train(config, Path(folder) / "run", progress=False)
        rows = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    radii = certify.certified_radii(model, images, test.labels)
    found = {
        "preset": preset,
        "precision": precision,
        "seed": seed,
        "loss": json.loads(rows[-1])["loss"],
        "clean": float(np.mean(radii >= 0)),
        "certified": [float(np.mean(radii >= r)) for r in args.radii],
        "lipschitz": float(model.lipschitz()),
        "seconds": time.perf_counter() - begin,
    }
    print(found, flush=True)
    return found


def table(rows: list[dict], args: Args) -> str:
    names = [f"certified % at {r:g}" for r in args.radii]
    lines = [
        f"| preset | products in training | loss | clean % | {' | '.join(names)} |",
        f"| --- | --- | ---: | ---: |{' ---: |' * len(names)}",
    ]
    for preset in dict.fromkeys(r["preset"] for r in rows):
        for precision in PRECISIONS:
            some = [
                [r["loss"], *(100 * x for x in (r["clean"], *r["certified"]))]
                for r in rows
                if (r["preset"], r["precision"]) == (preset, precision)
            ]
            losses, *shares = zip(*some, strict=True)
            cells = [" / ".join(f"{x:.3f}" for x in losses)]
            cells += [" / ".join(f"{x:.1f}" for x in share) for share in shares]
            lines.append(f"| {preset} | {precision} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(rows: list[dict], errors: dict[str, float], args: Args) -> None:
    result = {
        "epochs": args.epochs,
        "radii": args.radii,
        "relative_error_of_a_product": errors,
        "rows": rows,
        "versions": versions(),
    }
    out = Path(args.out)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(rows, args))
    print(table(rows, args), flush=True)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    emulate()
    errors = {precision: error_of_a_product(precision) for precision in PRECISIONS}
    rows = []
    for seed in range(args.seeds):
        for preset in args.presets:
            for precision in PRECISIONS:
                rows.append(row(preset, precision, seed, args))
            write(rows, errors, args)  # for whoever stops it before the end


if __name__ == "__main__":
    run(main)
