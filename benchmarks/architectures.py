"""Architectures at equal images: python benchmarks/architectures.py.

Trains the preset certified_cifar10 in several architectures, each on 80,000 images if
the row does not say otherwise, and certifies each on 5,000 training images that were
held out. Rows are written into benchmarks/results/architectures.json and .md as they
are done; those that are there already are not run again.
"""

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import tyro

from jnode import certify, data
from jnode._process import run, versions
from jnode.solvers import Solver
from jnode.train import TrainConfig, evaluation_images, get_preset, train

RESULTS = Path(__file__).parent / "results"
RADII = (36 / 255, 72 / 255, 108 / 255)
BASE = {"features": 128, "hidden": 32, "kernel_size": 5, "segments": (8,)}
VARIANTS: dict[str, dict] = {
    "128 channels, 32 hidden units, 8 steps, kernels of 5": {},
    "8 steps of the same weights": {"segments": (1,), "steps": 8},
    "8 steps of the same weights, three times the images": {
        "segments": (1,),
        "steps": 8,
        "times": 3,
    },
    "1 step": {"segments": (1,)},
    "1 step, 24 times the images": {"segments": (1,), "times": 24},
    "1 step, 128 hidden units": {"segments": (1,), "hidden": 128},
    "4 steps of Heun": {"segments": (4,), "solver": "heun"},
    "3 steps of Bosh3": {"segments": (3,), "solver": "bosh3"},
    "2 steps of RK4": {"segments": (2,), "solver": "rk4"},
    "almost orthogonal (aol)": {"constraint": "aol"},
    "no position bias": {"position": False},
    "64 channels": {"features": 64},
    "16 hidden units, 16 steps": {"hidden": 16, "segments": (16,)},
    "12 steps": {"segments": (12,)},
    "192 channels": {"features": 192},
    "kernels of 3": {"kernel_size": 3},
    "4 steps, then 4 at half the resolution": {"segments": (4, 4)},
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Trains and certifies each architecture that has no row yet."""

    images: int = 80_000
    """Images of training, half of them different ones."""

    data_dir: str | None = None
    """The TFDS folder; by default TFDS_DATA_DIR."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    path = RESULTS / "architectures.json"
    rows = json.loads(path.read_text()) if path.is_file() else {}
    for name, variant in VARIANTS.items():
        if name not in rows:
            config = configured(variant, args)
            seen = config.epochs * args.images // 2
            rows[name] = {"images": seen, **measure(config, args.data_dir)}
            path.write_text(json.dumps(rows, indent=1) + "\n")
            (RESULTS / "architectures.md").write_text(table(rows))
    print(table(rows))


def configured(variant: dict, args: Args) -> TrainConfig:
    """The preset with another architecture, trained on so many images."""
    options = {**BASE, **variant}
    count = sum(options["segments"])
    steps = options.pop("steps", count)
    times = options.pop("times", 1)
    solver = Solver(options.pop("solver", "euler"), steps=steps)
    base = get_preset("certified_cifar10")
    # hL = 2r, the edge of contractivity: 2 for all of these methods but Bosh3.
    radius = certify.circle_contractivity_radius(solver.name)
    options["lipschitz"] = 2.0 * radius * steps
    images = dataclasses.replace(
        base.data, validation=5000, num_train=args.images // 2, dir=args.data_dir
    )
    return dataclasses.replace(
        base,
        data=images,
        model=dataclasses.replace(base.model, **options),
        solver=solver,
        epochs=2 * times,
    )


def measure(
    config: TrainConfig, data_dir: str | None, at: tuple[float, ...] = RADII
) -> dict:
    """Certified accuracy on the held-out images, and what training cost."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = train(config, Path(folder) / "run")
    seconds = time.perf_counter() - begin
    held_out = evaluation_images(config.data, data_dir)
    images = np.asarray(data.to_float(held_out.images))
    radii = certify.certified_radii(model, images, held_out.labels)
    arrays = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return {
        "config": dataclasses.asdict(config.model),
        "solver": str(config.solver),
        "parameters": sum(x.size for x in arrays),
        "seconds": round(seconds),
        "accuracies": [float(np.mean(radii >= r)) for r in (0, *at)],
        "versions": versions(),
    }


def table(rows: dict) -> str:
    """Markdown, one row for each architecture."""
    lines = [
        "| CIFAR-10, certified on 5,000 held-out images | weights | clean | 36/255 | "
        "72/255 | 108/255 | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        shares = " | ".join(f"{100 * x:.1f}" for x in row["accuracies"])
        weights = f"{row['parameters'] / 1e6:.2f} M"
        lines.append(f"| {name} | {weights} | {shares} | {row['seconds']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main)
