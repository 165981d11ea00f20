"""How fast jnode trains, infers and attacks, beside its peers, in one run.

    python benchmarks/speed.py [--batch 128] [--channels 64] [--side 7] [--rounds 9]

All contestants do the same work on the same states, in turn, round after round; a table
row is the median of its rounds (of one round, where a call takes over a second) and
its ratio to jnode's. PyTorch, torchdiffeq and
torchode are needed (the extra `peers`). Writes benchmarks/results/speed.{json,md}.
"""

import argparse
import json
import os
import time
from pathlib import Path

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch_peers as peers

import jnode
from jnode.solvers import solve_batch, tableau
from jnode.solvers.solve import step as rk_step

RESULTS = Path(__file__).parent / "results"
FIXED = jnode.Solver("rk4", steps=4)
ADAPTIVE = jnode.Solver("dopri5", rtol=1e-3, atol=1e-4)
OPERATIONS = ("training step", "inference", "attack step")


class PlainConvField(eqx.Module):
    """The ODENet as Diffrax's documentation would have it: `eqx.nn.Conv2d`."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d

    def __init__(self, channels, key):
        keys = jax.random.split(key)
        self.first, self.second = (
            eqx.nn.Conv2d(channels, channels, 3, padding=1, key=k) for k in keys
        )

    def __call__(self, t, y, args):
        y = jnp.moveaxis(y, -1, 0)
        return jnp.moveaxis(self.second(jax.nn.relu(self.first(y))), 0, -1)


def by_jnode(field, solver):
    return lambda field, y: solve_batch(field, y, solver).y


def by_diffrax(field, solver):
    """`diffeqsolve` with its own defaults, mapped over the batch."""
    if solver.adaptive:
        rtol, atol = solver.tolerances
        controller, dt0 = diffrax.PIDController(rtol=rtol, atol=atol), None
    else:
        controller, dt0 = diffrax.ConstantStepSize(), 1 / solver.steps

    def one(field, y):
        term = diffrax.ODETerm(field)
        solution = diffrax.diffeqsolve(
            term, solver.diffrax(), 0.0, 1.0, dt0, y, stepsize_controller=controller
        )
        return solution.ys[-1]

    return lambda field, y: jax.vmap(one, (None, 0))(bake(field), y)


def by_scan(field, solver):
    """What a user would write by hand around the same field."""
    h = jnp.asarray(1 / solver.steps)

    def solve(field, y):
        field = bake(field)
        body = lambda y, _: (rk_step(field, h, h, y, solver), None)
        y = jnp.moveaxis(y, 0, -2)
        return jnp.moveaxis(jax.lax.scan(body, y, length=solver.steps)[0], -2, 0)

    return solve


def bake(field):
    return field.bake() if hasattr(field, "bake") else field


def jax_runs(make_solve, field, solver, states, labels):
    """The three operations of one JAX contestant, each as a function of nothing."""
    solve = make_solve(field, solver)
    head = jnode.models.Head(states[0].size, 10, unit_norm=False, key=jax.random.key(1))
    optimizer = optax.adam(1e-4)
    params = (field, head)
    opt = optimizer.init(eqx.filter(params, eqx.is_inexact_array))

    def loss(params, y):
        field, head = params
        features = solve(field, y).reshape(len(y), -1)
        logits = jax.vmap(head)(features)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @eqx.filter_jit
    def step(params, opt, y):
        _, grads = eqx.filter_value_and_grad(loss)(params, y)
        updates, opt = optimizer.update(grads, opt)
        return eqx.apply_updates(params, updates), opt

    baked = (bake(field), head)
    infer = eqx.filter_jit(loss)
    attack = eqx.filter_jit(lambda params, y: jax.grad(lambda y: loss(params, y))(y))
    state = [params, opt]

    def train():
        state[:] = jax.block_until_ready(step(*state, states))

    return {
        "training step": train,
        "inference": lambda: infer(baked, states).block_until_ready(),
        "attack step": lambda: attack(baked, states).block_until_ready(),
    }


def torch_runs(model, states, labels):
    y = torch.as_tensor(states).permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(labels)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    loss = lambda y: torch.nn.functional.cross_entropy(model(y), labels)

    def train():
        optimizer.zero_grad()
        loss(y).backward()
        optimizer.step()

    def infer():
        with torch.no_grad():
            loss(y)

    def attack():
        x = y.clone().requires_grad_(True)
        torch.autograd.grad(loss(x), x)

    return {"training step": train, "inference": infer, "attack step": attack}


def contestants(args):
    """Per group and name, the operations; jnode's first in each group."""
    channels, side = args.channels, args.side
    states, labels = peers.numpy_batch(args.batch, side, channels)
    shape, key = (side, side, channels), jax.random.key(0)
    x, classes = jnp.asarray(states), jnp.asarray(labels)
    ortho = jnode.OrthoField(shape, key=key)
    circular = jnode.FreeField(shape, padding="circular", key=key)
    conv = jnode.FreeField(shape, key=key)
    plain = PlainConvField(channels, key)

    def ours(make, field, solver):
        return lambda: jax_runs(make, field, solver, x, classes)

    def theirs(field, solve):
        model = lambda: peers.Classifier(field(), channels, side, solve)
        return lambda: torch_runs(model(), states, labels)

    def cayley(form):
        return lambda: peers.CayleyField(channels, side, form=form)

    rk4 = peers.torchdiffeq_solve("rk4", steps=FIXED.steps)
    dopri5 = peers.torchdiffeq_solve("dopri5", tolerances=ADAPTIVE.tolerances)
    torchode = peers.torchode_solve("dopri5", ADAPTIVE.tolerances)
    return {
        "Ortho, rk4x4": {
            "jnode": ours(by_jnode, ortho, FIXED),
            "lax.scan by hand": ours(by_scan, ortho, FIXED),
            "Diffrax": ours(by_diffrax, ortho, FIXED),
            "free field of the same form, jnode": ours(by_jnode, circular, FIXED),
            "torchdiffeq, Cayley per call": theirs(cayley("per call"), rk4),
            "torchdiffeq, Cayley hoisted": theirs(cayley("hoisted"), rk4),
            "torchdiffeq, jnode's form": theirs(cayley("matmul"), rk4),
        },
        "ODENet (zero-padded), rk4x4": {
            "jnode": ours(by_jnode, conv, FIXED),
            "Diffrax, eqx.nn.Conv2d": ours(by_diffrax, plain, FIXED),
            "torchdiffeq": theirs(lambda: peers.ConvField(channels), rk4),
        },
        "Ortho, dopri5, rtol 1e-3, atol 1e-4": {
            "jnode": ours(by_jnode, ortho, ADAPTIVE),
            "Diffrax": ours(by_diffrax, ortho, ADAPTIVE),
            "torchdiffeq, Cayley per call": theirs(cayley("per call"), dopri5),
            "torchdiffeq, Cayley hoisted": theirs(cayley("hoisted"), dopri5),
            "torchode, Cayley hoisted": theirs(cayley("hoisted"), torchode),
        },
    }


def measure(group, rounds):
    """Medians in milliseconds, and the seconds of each first call."""
    runs, first = {}, {}
    for name, make in group.items():
        for operation, run in make().items():
            start = time.perf_counter()
            run()
            first[name, operation] = time.perf_counter() - start
            start = time.perf_counter()
            run()
            slow = time.perf_counter() - start > 1
            runs[name, operation] = (run, 1 if slow else rounds)
    times = {key: [] for key in runs}
    for turn in range(rounds):
        for key, (run, wanted) in runs.items():
            if turn < wanted:
                start = time.perf_counter()
                run()
                times[key].append(time.perf_counter() - start)
    return {key: float(np.median(t)) * 1e3 for key, t in times.items()}, first


def waste(args):
    """NFE of the adaptive solve: the batch pays for its slowest sample."""
    states, _ = peers.numpy_batch(args.batch, args.side, args.channels)
    shape = (args.side, args.side, args.channels)
    field = jnode.OrthoField(shape, key=jax.random.key(0))
    solve = eqx.filter_jit(lambda y: solve_batch(field, y, ADAPTIVE).stats["nfe"])
    nfe = np.asarray(solve(jnp.asarray(states)))
    return {"mean": float(nfe.mean()), "max": int(nfe.max())}


def ceiling():
    """GFLOP/s of a large float32 matrix product."""
    a = jnp.ones((1024, 1024))
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    times = []
    for _ in range(9):
        start = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * 1024**3 / float(np.median(times)) / 1e9


def table(result):
    lines = [
        f"Batch {result['batch']}, {result['side']} x {result['side']} x "
        f"{result['channels']}, float32, {result['cores']} cores "
        f"({result['ceiling_gflops']:.0f} GFLOP/s in a large matrix product). "
        f"Milliseconds, medians of up to {result['rounds']} rounds in turn; in "
        "brackets, how many times jnode's.",
        "",
        "`python benchmarks/speed.py`",
    ]
    for group, rows in result["groups"].items():
        lines += [
            "",
            f"| {group} | {' | '.join(OPERATIONS)} | first step, s |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for name, row in rows.items():
            cells = [
                f"{row[o]:.0f} ({row[o] / rows['jnode'][o]:.2f})" for o in OPERATIONS
            ]
            lines.append(f"| {name} | {' | '.join(cells)} | {row['first']:.1f} |")
    nfe = result["nfe"]
    lines += [
        "",
        f"Adaptive: NFE {nfe['mean']:.1f} in the mean of the batch, {nfe['max']} for "
        "its slowest sample, which is what the batch pays for.",
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("batch", 128), ("channels", 64), ("side", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", default=str(RESULTS / "speed"))
    args = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    result = {
        "batch": args.batch,
        "channels": args.channels,
        "side": args.side,
        "rounds": args.rounds,
        "cores": os.cpu_count(),
        "stages": {s.name: len(tableau(s.name)[1]) for s in (FIXED, ADAPTIVE)},
        "ceiling_gflops": ceiling(),
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
        "groups": {},
        "nfe": waste(args),
    }
    for group, makers in contestants(args).items():
        medians, first = measure(makers, args.rounds)
        result["groups"][group] = {
            name: {
                **{o: medians[name, o] for o in OPERATIONS},
                "first": first[name, OPERATIONS[0]],
            }
            for name in makers
        }
        print(table(result))
    out = Path(args.out)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(result))


if __name__ == "__main__":
    main()
