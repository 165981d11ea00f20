"""The price of each way to differentiate a solve: python benchmarks/adjoints.py

Of one Ortho field, a batch of states and several solvers: the time of a gradient with
respect to weights and states, the memory that XLA sets aside for it, and how far it is
from the gradient of the same solve in double precision. Writes
benchmarks/results/adjoints.json and .md. Two minutes on 2 cores.
"""

import dataclasses
import json
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import jnode
from jnode._process import run, versions
from jnode.solvers import solve_batch
from jnode.solvers.solver import ADJOINTS

RESULTS = Path(__file__).parent / "results"
SHAPE, BATCH, ROUNDS = (7, 7, 32), 64, 7
SOLVERS = (
    jnode.Solver("rk4", steps=4),
    jnode.Solver("rk4", steps=64),
    jnode.Solver("dopri5", rtol=1e-3, atol=1e-4),
)


def gradient(arrays, static, y, solver):
    def loss(both):
        field = eqx.combine(both[0], static)
        return jnp.mean(jnp.square(solve_batch(field, both[1], solver).y))

    return jax.grad(loss)((arrays, y))


def distance(found, exact) -> float:
    """Relative, in the Euclidean norm of all of it."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True))
    off = sum(float(np.sum((np.float64(a) - np.float64(b)) ** 2)) for a, b in pairs)
    return (off / sum(float(np.sum(np.float64(b) ** 2)) for _, b in pairs)) ** 0.5


def rows() -> list[dict]:
    field = jnode.OrthoField(SHAPE, lipschitz=2.0, key=jax.random.key(0))
    arrays, static = eqx.partition(field, eqx.is_array)
    y = jax.random.normal(jax.random.key(1), (BATCH, *SHAPE))
    found = []
    for solver in SOLVERS:
        compiled = {}
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda x: x.astype(jnp.float64), (arrays, y))
            exact = jax.device_get(
                jax.jit(lambda a, y: gradient(a, static, y, solver))(*wide)
            )
        for adjoint in ADJOINTS:
            chosen = dataclasses.replace(solver, adjoint=adjoint)
            f = jax.jit(lambda a, y: gradient(a, static, y, chosen))
            compiled[adjoint] = f.lower(arrays, y).compile()
        times = {adjoint: [] for adjoint in compiled}
        for _ in range(ROUNDS):
            for adjoint, f in compiled.items():
                start = time.perf_counter()
                jax.block_until_ready(f(arrays, y))
                times[adjoint].append(time.perf_counter() - start)
        for adjoint, f in compiled.items():
            result = jax.device_get(f(arrays, y))
            found.append(
                {
                    "solver": str(solver),
                    "adjoint": adjoint,
                    "milliseconds": 1e3 * float(np.median(times[adjoint])),
                    "megabytes": f.memory_analysis().temp_size_in_bytes / 1e6,
                    "gradient_error": distance(result, exact),
                }
            )
            print(found[-1], flush=True)
    return found


def table(rows: list[dict]) -> str:
    lines = [
        "| solver | adjoint | ms | times direct | memory MB | gradient error |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    direct = {r["solver"]: r for r in rows if r["adjoint"] == "direct"}
    for row in rows:
        ratio = row["milliseconds"] / direct[row["solver"]]["milliseconds"]
        cells = (
            row["solver"],
            row["adjoint"],
            f"{row['milliseconds']:.0f}",
            f"{ratio:.2f}",
            f"{row['megabytes']:.1f}",
            f"{row['gradient_error']:.0e}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    found = rows()
    result = {"shape": SHAPE, "batch": BATCH, "versions": versions(), "rows": found}
    (RESULTS / "adjoints.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "adjoints.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    run(main)
