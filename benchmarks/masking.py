"""Known fake defences against the checks: python benchmarks/masking.py

Trains small models on the embedded digits, gives some of them what is known to hide
gradients, evaluates each with a short protocol, and writes which flags were raised into
benchmarks/results/masking.json and .md. About fifteen minutes on 2 cores.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from jnode import data
from jnode._process import run, versions
from jnode.attacks import Budget
from jnode.evaluation import PROTOCOLS, check_model, evaluate, plan, surrogates
from jnode.models import AbstractLayer, Head, ODEClassifier
from jnode.models.batched import batched
from jnode.solvers import Solver
from jnode.train import LossConfig, TrainConfig, get_preset, train

RESULTS = Path(__file__).parent / "results"
BUDGET = ("linf", 0.1)
IMAGES = 50
PROTOCOL = dataclasses.replace(PROTOCOLS["quick"], checked=IMAGES)


class Front(AbstractLayer):
    """Something that is done to the pixels first."""

    affine: ClassVar[bool] = False

    front: Callable = eqx.field(static=True)

    def __call__(self, x):
        return self.front(x)

    def lipschitz(self):
        return jnp.asarray(jnp.inf)


def quantise(image):
    """Four levels, and a gradient nowhere."""
    return jnp.round(3 * image) / 3


def saturate(image):
    """Steep at one half and flat elsewhere."""
    return 0.5 + 0.5 * jnp.tanh(1000 * (image - 0.5))


def with_front(model: ODEClassifier, front: Callable) -> ODEClassifier:
    return dataclasses.replace(model, layers=(Front(front), *model.layers))


def hot(model: ODEClassifier) -> ODEClassifier:
    """Logits so large that the cross-entropy underflows; no prediction changes."""
    classes, features = model.head.weight.shape
    free = Head(features, classes, unit_norm=False, key=jr.key(0))
    values = 1e4 * model.head.rows(), 1e4 * model.head.bias
    head = eqx.tree_at(lambda h: (h.weight, h.bias), free, values)
    return eqx.tree_at(lambda m: m.head, model, head)


def trained(config: TrainConfig) -> ODEClassifier:
    with tempfile.TemporaryDirectory() as folder:
        return train(config, Path(folder) / "run", progress=False).bake()


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, what is fake about it, and the flags one of which it must raise."""

    name: str
    what: str
    make: Callable[[], ODEClassifier]
    expected: tuple[str, ...] = ()


def cases() -> list[Case]:
    contractive = dataclasses.replace(get_preset("contractive"), epochs=8)
    # A coarse grid of states, and few steps at most: quick to train and to attack.
    small = dataclasses.replace(
        contractive.model, patch=7, features=64, hidden=32, lipschitz=4.0, segments=1
    )
    flow = dataclasses.replace(
        contractive,
        model=small,
        solver=Solver("rk4", steps=4),
        loss=LossConfig("natural"),
        epochs=4,
    )
    stiff = dataclasses.replace(
        flow,
        model=dataclasses.replace(small, lipschitz=120.0),
        solver=Solver("heun", rtol=0.5, atol=0.5, max_steps=32),
        epochs=8,
        data=dataclasses.replace(flow.data, num_train=2000),
    )
    made: dict[str, ODEClassifier] = {}

    def once(name, config):
        if name not in made:
            made[name] = trained(config)
        return made[name]

    honest = lambda: once("contractive", contractive)
    tight = Solver("dopri5", rtol=1e-4, atol=1e-5, max_steps=32)
    masked = ("zero gradients", "shattered gradients")
    return [
        Case("honest, fixed steps", "preset contractive", honest),
        Case(
            "honest, adaptive",
            f"a gradient flow, {tight}",
            lambda: once("flow", flow).with_solver(tight),
        ),
        Case(
            "quantising front",
            "pixels rounded to four levels",
            lambda: with_front(honest(), quantise),
            masked,
        ),
        Case(
            "saturating front",
            "tanh(1000 (x - 1/2)) of the pixels",
            lambda: with_front(honest(), saturate),
            masked,
        ),
        Case(
            "huge logits",
            "logits times 10,000",
            lambda: hot(honest()),
            ("zero gradients",),
        ),
        Case(
            "loose tolerance",
            f"trained and evaluated with {stiff.solver}, L = 120",
            lambda: once("stiff", stiff),
            ("tolerance",),
        ),
        Case(
            "continuous adjoint",
            "preset contractive, gradients by backsolve",
            lambda: honest().with_solver(
                dataclasses.replace(contractive.solver, adjoint="backsolve")
            ),
            ("continuous adjoint",),
        ),
    ]


def assess(model: ODEClassifier) -> dict:
    """The quick protocol at one budget, with its checks."""
    test = data.load("mnist5k", split="test").take(IMAGES)
    images = np.asarray(data.to_float(jnp.asarray(test.images)))
    through = surrogates(model, images, test.labels, PROTOCOL.surrogates)
    budget = Budget(*BUDGET)
    trials = plan(PROTOCOL, [budget], through, classes=10)
    whole = batched(model)
    found = evaluate(
        whole,
        images,
        test.labels,
        trials,
        batch_size=IMAGES,
        successive=True,
        progress=False,
    ).summary
    checks = check_model(model, images, test.labels, PROTOCOL, budget)
    flags = [*found["flags"], *(f for c in checks.values() for f in c["flags"])]
    rows = found["attacks"]
    white = [r for r in rows if not r["via"] and r["name"] != "square"]
    return {
        "clean_accuracy": found["clean_accuracy"],
        "after_pgd": rows[0]["robust_accuracy"],
        "after_white_box": white[-1]["robust_accuracy"],
        "after_all": rows[-1]["robust_accuracy"],
        "attacks": rows,
        "checks": found["checks"] | checks,
        "flags": flags,
    }


def main() -> None:
    rows = []
    for case in cases():
        start = time.perf_counter()
        found = assess(case.make())
        codes = list(dict.fromkeys(flag.split(":")[0] for flag in found["flags"]))
        right = set(case.expected) <= set(codes) if case.expected else not codes
        seconds = round(time.perf_counter() - start)
        rows.append(
            {
                "name": case.name,
                "what": case.what,
                "expected": case.expected,
                "raised": codes,
                "right": right,
                "seconds": seconds,
                **found,
            }
        )
        print(f"{case.name}: {', '.join(codes) or 'no flag'} ({seconds} s)", flush=True)
    result = {
        "command": "python benchmarks/masking.py",
        "num_examples": IMAGES,
        "budget": BUDGET,
        "versions": versions(),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "masking.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "masking.md").write_text(table(result))
    print(table(result))
    wrong = [row["name"] for row in rows if not row["right"]]
    if wrong:
        raise SystemExit(f"Not flagged as they should be: {', '.join(wrong)}.")


def table(result: dict) -> str:
    """Markdown: a row a model, with what each attack left and which flags it raised."""
    lines = [
        "| model | what it does | clean % | PGD-20 | all white-box | with Square and "
        "transfers | flags |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in result["rows"]:
        shares = ("clean_accuracy", "after_pgd", "after_white_box", "after_all")
        cells = [f"{100 * row[k]:.0f}" for k in shares]
        flags = ", ".join(row["raised"]) or "none"
        lines.append(
            f"| {row['name']} | {row['what']} | {' | '.join(cells)} | {flags} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main)
