"""What a ladder costs beside Diffrax's controller: python benchmarks/ladder.py.

Evaluations of the field at equal error, for fields of the package and the pairs that
estimate their error. Each controller solves the same states at many tolerances; the
evaluations at an error are read between them, on the line through the logarithms. The
first row of a problem is `diffrax.PIDController`, with its two evaluations for the
first step. Writes benchmarks/results/ladder.json and .md.
"""

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

import jnode
from jnode._process import run, versions
from jnode.solvers import Solver, solve_batch

RESULTS = Path(__file__).parent / "results"
SHAPE, STATES = (32,), 64
TOLERANCES = 10.0 ** np.arange(-1, -5.1, -0.25)
ERRORS = (1e-2, 1e-3, 1e-4)
"""Mean L2 errors of the end, relative to the mean length of the states."""
METHODS = ("heun", "bosh3", "dopri5")
FIELDS = {
    "ortho, L = 2": lambda key: jnode.OrthoField(
        SHAPE, lipschitz=2.0, activation="tanh", key=key
    ),
    "gradient flow, L = 8": lambda key: jnode.GradientFlowField(
        SHAPE, lipschitz=8.0, activation="softplus", key=key
    ),
    "skew, L = 8": lambda key: jnode.SkewField(
        SHAPE, lipschitz=8.0, activation="tanh", key=key
    ),
}
CONTROLLERS = {
    "pid": {},
    "ladder": {"controller": "ladder"},
    "ladder, from 1/4": {"controller": "ladder", "first_step": 0.25},
    "halving": {"controller": "halving"},
}


@eqx.filter_jit
def curve(field, states, truth, solver) -> tuple[Array, Array]:
    """Errors and mean evaluations, over the tolerances."""
    size = lambda x: jnp.mean(jnp.linalg.norm(x, axis=-1))

    def one(tolerance):
        found = solve_batch(field, states, solver.at(tolerance * jnp.ones(2)))
        return size(found.y - truth) / size(truth), jnp.mean(found.stats["nfe"])

    return jax.lax.map(one, jnp.asarray(TOLERANCES, states.dtype))


def at(errors, nfes, wanted) -> float | None:
    """The evaluations at an error; `None` outside of what was solved."""
    if not min(errors) <= wanted <= max(errors):
        return None
    order = np.argsort(errors)
    logs = np.log(np.asarray(errors)[order]), np.log(np.asarray(nfes)[order])
    return float(np.exp(np.interp(np.log(wanted), *logs)))


def main() -> None:
    rows = []
    for kind, make in FIELDS.items():
        field = make(jr.key(0)).bake()
        states = jr.normal(jr.key(1), (STATES, *SHAPE))
        truth = solve_batch(field, states, Solver("dopri8", steps=64)).y
        for name in METHODS:
            for label, options in CONTROLLERS.items():
                solver = Solver(name, rtol=1.0, atol=1.0, max_steps=4096, **options)
                errors, nfes = (x.tolist() for x in curve(field, states, truth, solver))
                nfe = [at(errors, nfes, wanted) for wanted in ERRORS]
                row = {"field": kind, "method": name, "controller": label, "nfe": nfe}
                rows.append(row | {"errors": errors, "nfes": nfes})
                print(row, flush=True)
    found = {"errors": ERRORS, "rows": rows, "versions": versions()}
    (RESULTS / "ladder.json").write_text(json.dumps(found, indent=1) + "\n")
    heads = [f"NFE at {error:g}" for error in ERRORS]
    lines = [
        f"| field | method | controller | {' | '.join(heads)} |",
        "| --- | --- | --- |" + " ---: |" * len(heads),
    ]
    for r in rows:
        cells = ["–" if x is None else f"{x:.1f}" for x in r["nfe"]]
        lines.append(
            f"| {r['field']} | {r['method']} | {r['controller']} | "
            f"{' | '.join(cells)} |"
        )
    (RESULTS / "ladder.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    run(main)
