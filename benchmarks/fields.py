"""What each field costs and gives: python benchmarks/fields.py.

Times one evaluation of each field, its gradient and its baking, side by side with the
free field; trains a classifier with each on the embedded digits, and reports clean and
certified accuracy. Writes benchmarks/results/fields.json and .md.
"""

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro
from tqdm import tqdm

import jnode
from jnode import certify, data
from jnode._process import run, versions
from jnode.train import DataConfig, LossConfig, TrainConfig, train

RESULTS = Path(__file__).parent / "results"
RADII = (0.5, 1.0)
EULER, RK4 = jnode.Solver("euler", steps=4), jnode.Solver("rk4", steps=2)


def _model(field, **options):
    return jnode.ModelConfig(field=field, features=32, patch=4, **options)


# Each with the solver and the constant that suit it.
FIELDS = {
    "free (no certificate)": (_model("free", padding="circular"), RK4),
    "ortho, cayley": (_model("ortho", lipschitz=0.5, activation="maxmin"), RK4),
    "ortho, rescaled": (
        _model("ortho", lipschitz=0.5, activation="maxmin", constraint="rescaled"),
        RK4,
    ),
    "gradient flow, cayley": (_model("gradient_flow", lipschitz=8.0), EULER),
    "gradient flow, 4 segments": (
        _model("gradient_flow", lipschitz=8.0, segments=(4,)),
        EULER,
    ),
    "gradient flow, sll": (
        _model("gradient_flow", lipschitz=8.0, constraint="sll"),
        EULER,
    ),
    "gradient flow, aol": (
        _model("gradient_flow", lipschitz=8.0, constraint="aol"),
        EULER,
    ),
    "gradient flow, newton_schulz": (
        _model("gradient_flow", lipschitz=8.0, constraint="newton_schulz"),
        EULER,
    ),
    "skew": (_model("skew", lipschitz=1.0, activation="leaky_relu"), RK4),
    "skew, damping 1": (
        _model("skew", lipschitz=1.0, damping=1.0, activation="leaky_relu"),
        RK4,
    ),
    "hamiltonian": (_model("hamiltonian", lipschitz=1.0), RK4),
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Times, trains and certifies a classifier with each field."""

    epochs: int = 15
    """Of each training."""

    repeats: int = 30
    """Timed evaluations of each field; the median counts."""


def timings(args: Args) -> dict[str, dict[str, float]]:
    """Median milliseconds for a batch of 128 states, measured in turn."""
    states = jr.normal(jr.key(0), (128, 7, 7, 32))
    calls = {}
    for name, (config, solver) in FIELDS.items():
        field = (
            jnode.build(
                config, solver, image_shape=(28, 28, 1), classes=10, key=jr.key(0)
            )
            .blocks[0]
            .field
        )
        field = field.segment(0) if isinstance(field, jnode.PiecewiseField) else field
        bake = eqx.filter_jit(lambda f: f.bake())
        baked = bake(field)
        evaluate = eqx.filter_jit(lambda f, y: jax.vmap(lambda y: f(0.0, y))(y))
        total = lambda y, f: jnp.sum(jax.vmap(lambda y: f(0.0, y))(y) ** 2)
        gradient = eqx.filter_jit(eqx.filter_grad(total))
        calls[name] = {
            "evaluation": lambda b=baked, e=evaluate: e(b, states),
            "gradient": lambda b=baked, g=gradient: g(states, b),
            "bake": lambda f=field, b=bake: b(f),
        }
    seconds = {name: {what: [] for what in each} for name, each in calls.items()}
    for each in calls.values():
        for call in each.values():
            jax.block_until_ready(call())
    for _ in tqdm(range(args.repeats), desc="timing"):
        for name, each in calls.items():
            for what, call in each.items():
                start = time.perf_counter()
                jax.block_until_ready(call())
                seconds[name][what].append(time.perf_counter() - start)
    return {
        name: {what: 1e3 * float(np.median(times)) for what, times in each.items()}
        for name, each in seconds.items()
    }


def accuracies(args: Args, name: str) -> dict[str, float]:
    """Clean and certified accuracy after a short training on 4,000 digits."""
    config, solver = FIELDS[name]
    free = config.field == "free"
    loss = (
        LossConfig("natural")
        if free
        else LossConfig("margin", logit_scale=4.0, rho=0.6)
    )
    whole = TrainConfig(
        data=DataConfig(pad=1),
        model=config,
        solver=solver,
        loss=loss,
        epochs=args.epochs,
        learning_rate=5e-3,
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        model = train(whole, folder, progress=False).bake()
        seconds = time.perf_counter() - start
    test = data.load(whole.data.name, split="test")
    images = np.asarray(data.to_float(jnp.asarray(test.images)))
    radii = certify.certified_radii(model, images, test.labels)
    tightness = float("nan")
    if not free:
        search = lambda x, key: certify.lipschitz_lower_bound(
            model.embed, x, key=key, steps=100
        )
        keys = jr.split(jr.key(0), 8)
        found = eqx.filter_jit(jax.vmap(search))(jnp.asarray(images[:8]), keys)
        tightness = float(model.lipschitz()) / float(jnp.max(found))
    return {
        "clean": float(np.mean(radii >= 0)),
        **{f"certified {r:g}": float(np.mean(radii >= r)) for r in RADII if not free},
        "lipschitz": float(model.lipschitz()),
        "tightness": tightness,
        "training seconds": seconds,
    }


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    times = timings(args)
    rows = [
        {"field": name, "solver": str(FIELDS[name][1])}
        | times[name]
        | accuracies(args, name)
        for name in tqdm(FIELDS, desc="training")
    ]
    summary = {"args": dataclasses.asdict(args), "versions": versions(), "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fields.json").write_text(json.dumps(summary, indent=1) + "\n")
    text = table(summary)
    (RESULTS / "fields.md").write_text(text)
    print(text)


def table(summary) -> str:
    """Markdown: times as ratios to the free field, accuracies in percent."""
    free = summary["rows"][0]
    lines = [
        "Times are ratios to the free field's evaluation "
        f"({free['evaluation']:.2f} ms for 128 states of 7 x 7 x 32), medians of "
        f"{summary['args']['repeats']} taken in turn on "
        f"{summary['versions']['device']}. Accuracies in % on 1,000 digits after "
        f"{summary['args']['epochs']} epochs on 4,000 others. Tightness: the certified "
        "constant over the largest ratio that a search found.",
        "",
        "`python benchmarks/fields.py`",
        "",
        "| field | solver | evaluation | gradient | bake | clean | L2 0.5 | L2 1 | "
        "tightness |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in summary["rows"]:
        share = lambda name, row=row: f"{100 * row[name]:.1f}" if name in row else "–"
        ratios = [
            f"{row[what] / free['evaluation']:.2f}"
            for what in ("evaluation", "gradient", "bake")
        ]
        tight = row["tightness"]
        cells = [
            row["field"],
            row["solver"],
            *ratios,
            share("clean"),
            *(share(f"certified {r:g}") for r in RADII),
            "–" if np.isnan(tight) else f"{tight:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main)
