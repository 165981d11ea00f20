"""What products in bfloat16 cost a trained model.

    python benchmarks/precision.py RUN_DIR ...

Evaluates each run on test images as it was trained and with its field's products in
bfloat16: accuracy, accuracy under PGD (each attacked through itself), how far the
features part, and what the certified radii would lose if no features parted further,
which is an empirical lower bound. Writes benchmarks/results/precision.json and .md.
A minute a run.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jnode
from jnode import attacks, certify, data
from jnode._process import run, versions
from jnode.fields import LowPrecisionField
from jnode.train import RunDir

RESULTS = Path(__file__).parent / "results"
TRIAL = attacks.Trial(attacks.PGD(steps=40), attacks.Budget("linf", 0.1))


@dataclasses.dataclass(frozen=True)
class Args:
    """Compares float32 with products in bfloat16."""

    run_dirs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders that scripts/train.py wrote."""

    num_examples: int = 1000
    """Test images."""

    data_dir: str | None = None
    """The TFDS folder, if elsewhere than in training."""


def row(folder: str, args: Args) -> dict:
    config, _ = RunDir(folder).read_config()
    test = data.load(
        config.data.name, split="test", data_dir=args.data_dir or config.data.dir
    ).take(args.num_examples)
    images = np.asarray(data.to_float(jnp.asarray(test.images)))
    model = jnode.load(folder)
    low = eqx.tree_at(
        lambda m: m.blocks[0].field, model, LowPrecisionField(model.blocks[0].field)
    )
    both = {"float32": model.bake(), "bfloat16": low.bake()}
    found = {"run": Path(folder).name, "field": config.model.field}
    for name, m in both.items():
        seen = attacks.run(
            jnode.batched(m),
            images,
            test.labels,
            [TRIAL],
            key=jax.random.key(0),
            progress=False,
        )
        clean = np.mean(seen.first_success != attacks.MISCLASSIFIED)
        found[name] = {"clean": float(clean), "robust": seen.robust_accuracy}
    embed = eqx.filter_jit(lambda m, x: jax.vmap(m.embed)(x))
    features = [np.asarray(embed(m, images), np.float64) for m in both.values()]
    away = np.linalg.norm((features[0] - features[1]).reshape(len(images), -1), axis=1)
    found["features_apart"] = float(away.max())
    if certify.refusal(model) is None:
        radii = certify.certified_radii(model, images, test.labels)
        # Features may err by so much at the image and at its neighbour.
        found["radius_lost"] = 2 * float(away.max()) / float(model.lipschitz())
        found["mean_radius"] = float(np.mean(radii[radii > 0]))
    return found


def table(rows: list[dict]) -> str:
    lines = [
        "| run | field | clean %, float32 | bfloat16 | PGD-40 Linf 0.1 %, float32 | "
        "bfloat16 | features apart, L2, at least | certified radius, mean | lost by "
        "that |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        shares = [
            f"{100 * r[dtype][k]:.1f}"
            for k in ("clean", "robust")
            for dtype in ("float32", "bfloat16")
        ]
        radii = [
            f"{r[k]:.3f}" if k in r else "–" for k in ("mean_radius", "radius_lost")
        ]
        cells = [r["run"], r["field"], *shares, f"{r['features_apart']:.3f}", *radii]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    rows = [row(folder, args) for folder in args.run_dirs]
    result = {"attack": "pgd-40 linf 0.1", "versions": versions(), "rows": rows}
    (RESULTS / "precision.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "precision.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    run(main)
