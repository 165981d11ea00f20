"""Tries to refute the certificates: python benchmarks/soundness.py.

For fields, maps, solvers and step sizes it builds random instances and instances that
were trained to stretch, certifies each in float32, and searches in float64 for two
states that part by more than the certificate allows. Writes
benchmarks/results/soundness.json and .md.
"""

import dataclasses
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro
from tqdm import tqdm

import jnode
from jnode._cli import run
from jnode._versions import versions
from jnode.certify import amplification, strongest_stretch
from jnode.certify.radius import ROUNDING
from jnode.fields import Composed, Decay
from jnode.linear import CONSTRAINTS

RESULTS = Path(__file__).parent / "results"
DENSE, CONV = (12,), (3, 4, 4)
SOLVERS = [
    jnode.Solver("euler", steps=1),
    jnode.Solver("euler", steps=4),
    jnode.Solver("heun", steps=2),
    jnode.Solver("midpoint", steps=2),
    jnode.Solver("rk4", steps=1),
    jnode.Solver("rk4", steps=2),
    jnode.Solver("bosh3", steps=2),
    jnode.Solver("tsit5", steps=2),
    jnode.Solver("dopri5", steps=4),
    jnode.Solver("heun", grid=(0.0, 0.1, 0.5, 1.0)),
]
FEW = [SOLVERS[1], SOLVERS[5]]

ortho, flow = jnode.OrthoField, jnode.GradientFlowField
skew, hamiltonian = jnode.SkewField, jnode.HamiltonianField


def _pieces(shape, key, **options):
    keys = jr.split(key, 2)
    return jnode.PiecewiseField([flow(shape, key=k, **options) for k in keys])


FIELDS = {
    "ortho relu": lambda s, L, k: ortho(s, lipschitz=L, key=k),
    "ortho maxmin, time": lambda s, L, k: ortho(
        s, lipschitz=L, activation="maxmin", time=True, key=k
    ),
    "ortho householder": lambda s, L, k: ortho(
        s, lipschitz=L, activation="householder", key=k
    ),
    "gradient flow": lambda s, L, k: flow(s, lipschitz=L, key=k),
    "gradient flow, 2 potentials, decay": lambda s, L, k: flow(
        s, lipschitz=L, potentials=2, decay=0.5, activation="softplus", key=k
    ),
    "gradient flow, 2 pieces": lambda s, L, k: _pieces(s, k, lipschitz=L),
    "skew": lambda s, L, k: skew(s, lipschitz=L, key=k),
    "skew, damped": lambda s, L, k: skew(
        s, lipschitz=L, damping=2.0, activation="leaky_relu", key=k
    ),
    "Hamiltonian": lambda s, L, k: hamiltonian(s, lipschitz=L, damping=0.1, key=k),
    "Hamiltonian, contractive": lambda s, L, k: hamiltonian(s, lipschitz=L, key=k),
    "sum: ortho + flow + decay": lambda s, L, k: (
        ortho(s, lipschitz=L, key=k) + flow(s, lipschitz=L, key=k) + Decay(L)
    ),
    "composed: ortho after decay": lambda s, L, k: Composed(
        ortho(s, lipschitz=L, key=k), Decay(1.0)
    ),
}


@dataclasses.dataclass(frozen=True)
class Args:
    """A hunt for violations of the certificates."""

    instances: int = 3
    """Random instances of each combination; as many are trained to stretch."""

    search: int = 150
    """Steps of each search."""

    starts: int = 4
    """Searches of each instance."""

    train: int = 60
    """Steps of the training that makes fields stretch."""


def combinations():
    """Name of the field, name of the map, shape, solver, L, and how to build it."""
    scales = (0.5, 2.0, 6.0)
    for i, (name, make) in enumerate(FIELDS.items()):
        for j, solver in enumerate(SOLVERS):
            if "pieces" in name and (solver.grid or solver.steps % 2):
                continue
            shape = (DENSE, CONV)[(i + j) % 2]
            kind = "dense" if shape == DENSE else "conv"
            scale = scales[(i + 2 * j) % 3]
            yield name, f"cayley {kind}", shape, solver, scale, make
    for constraint in CONSTRAINTS:
        for shape, padding in ((DENSE, None), (CONV, "circular"), (CONV, "zero")):
            if padding == "zero" and constraint in ("cayley", "newton_schulz"):
                continue
            options = {"constraint": constraint, "hidden": 6}
            options |= {"padding": padding} if padding else {}
            map_ = f"{constraint} {padding + ' conv' if padding else 'dense'}"
            for name, kind in (("ortho relu", ortho), ("gradient flow", flow)):
                for solver, scale in zip(FEW, (4.0, 1.0), strict=True):
                    yield (
                        name,
                        map_,
                        shape,
                        solver,
                        scale,
                        lambda s, L, k, kind=kind, options=options: kind(
                            s, lipschitz=L, key=k, **options
                        ),
                    )


def stretchy(field, shape, solver, key, steps):
    """The field after training to part pairs of states."""
    keys = jr.split(key, 2)
    y, d = jr.normal(keys[0], (16, *shape)), jr.normal(keys[1], (16, *shape))
    optimizer = optax.adam(0.03)
    params, static = eqx.partition(field, eqx.is_inexact_array)

    def loss(params):
        f = eqx.combine(params, static).bake()
        end = jax.vmap(lambda y: jnode.solve(f, y, solver).y)
        parted = jnp.sum((end(y + 0.1 * d) - end(y)) ** 2, axis=range(1, y.ndim))
        return -jnp.mean(jnp.log(parted + 1e-12))

    def body(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(body, (params, optimizer.init(params)), length=steps)
    return eqx.combine(params, static)


def hunt(args: Args, shape, solver, scale, make, seed) -> dict:
    """Bounds, strongest stretches and float32 errors of one combination."""
    keys = jr.split(jr.key(seed), args.instances)
    fields = [make(shape, scale, key) for key in keys]
    trained = [
        eqx.filter_jit(stretchy)(field, shape, solver, key, args.train)
        for field, key in zip(fields, keys, strict=True)
    ]
    stack = lambda *leaves: jnp.stack(leaves)
    baked = [field.bake() for field in fields + trained]
    arrays, static = eqx.partition(jax.tree.map(stack, *baked), eqx.is_array)
    starts = jr.normal(jr.key(seed + 1), (args.starts, *shape))

    @jax.jit
    def certify(arrays):
        return jax.vmap(lambda a: amplification(eqx.combine(a, static), solver))(arrays)

    @jax.jit
    def search(arrays, starts):
        def one(a, start, key):
            f = lambda y: jnode.solve(eqx.combine(a, static), y, solver).y
            return strongest_stretch(f, start, key=key, steps=args.search, rate=0.2)

        many = jax.vmap(one, (None, 0, 0))
        keys = jr.split(jr.key(seed + 2), len(starts))
        return jax.vmap(lambda a: jnp.max(many(a, starts, keys)))(arrays)

    @jax.jit
    def ends(arrays, starts):
        f = lambda a, y: jnode.solve(eqx.combine(a, static), y, solver).y
        return jax.vmap(lambda a: jax.vmap(lambda y: f(a, y))(starts))(arrays)

    bounds, single = certify(arrays), ends(arrays, starts)
    with jax.enable_x64(True):
        # The very weights that were certified, in exact arithmetic as good as.
        exact = jax.tree.map(lambda w: w.astype(jnp.float64), arrays)
        found = search(exact, starts.astype(jnp.float64))
        double = ends(exact, starts.astype(jnp.float64))
        error = np.abs(np.asarray(single, np.float64) - np.asarray(double))
    axes = tuple(range(2, double.ndim))
    error = np.sqrt(np.sum(error**2, axis=axes))
    size = 1 + np.sqrt(np.sum(np.asarray(double) ** 2, axis=axes))
    return {
        "bounds": np.asarray(bounds, np.float64).tolist(),
        "found": np.asarray(found, np.float64).tolist(),
        "float32_error": float(np.max(error / size)),
    }


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    rows = []
    every = list(combinations())
    for seed, (name, map_, shape, solver, scale, make) in enumerate(tqdm(every)):
        found = hunt(args, shape, solver, scale, make, seed)
        rows.append(
            {"field": name, "map": map_, "solver": str(solver), "lipschitz": scale}
            | found
        )
        # Every combination compiles anew, and memory maps are not endless.
        jax.clear_caches()
    summary = summarise(args, rows)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "soundness.json").write_text(json.dumps(summary, indent=1) + "\n")
    text = table(summary)
    (RESULTS / "soundness.md").write_text(text)
    print(text)
    if summary["violations"]:
        raise SystemExit(1)


def summarise(args: Args, rows: list[dict]) -> dict:
    """What the JSON file holds."""
    return {
        "args": dataclasses.asdict(args),
        "versions": versions(),
        "instances": sum(len(row["bounds"]) for row in rows),
        "violations": sum(int(np.sum(_over(row) > 1)) for row in rows),
        # The largest error as a share of the allowance of `jnode.certify.radius`.
        "float32_share": max(
            row["float32_error"] / (ROUNDING * max(1, min(row["bounds"])))
            for row in rows
        ),
        "rows": rows,
    }


def _over(row):
    return np.asarray(row["found"]) / np.asarray(row["bounds"])


def table(summary) -> str:
    """Markdown: how close the searches came, by field and by map."""
    lines = [
        f"{summary['instances']} instances, half of them trained to stretch: "
        f"{summary['violations']} violations. A ratio is the certified upper bound "
        "over the strongest stretch found in float64 (an empirical lower bound); below "
        "1 would refute the certificate. Float32 solves err by at most "
        f"{100 * summary['float32_share']:.0f} % of the allowance for rounding.",
        "",
        "`python benchmarks/soundness.py`",
    ]
    for kind in ("field", "map", "solver"):
        lines += [
            "",
            f"| {kind} | instances | smallest ratio | median ratio |",
            "| --- | ---: | ---: | ---: |",
        ]
        for name in dict.fromkeys(row[kind] for row in summary["rows"]):
            rows = [row for row in summary["rows"] if row[kind] == name]
            ratios = np.concatenate([1 / _over(row) for row in rows])
            lines.append(
                f"| {name} | {len(ratios)} | {ratios.min():.3f} | "
                f"{np.median(ratios):.2f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main)
