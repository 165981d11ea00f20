"""How long a solve takes for a wanted accuracy: python benchmarks/work_precision.py

One Ortho field, smooth (softplus) or not (ReLU), and a batch of states. Each contestant
solves it with more and more steps, or with tighter and tighter tolerances. The error is
relative to a solve in double precision by Diffrax's Dopri8, and the time the median of
rounds in which all take turns. The weights are the same in JAX and in PyTorch, which is
checked. Needs the extra `peers`, torchode and gradsolve. Writes
benchmarks/results/work_precision.{json,md,png}; `--quick` runs everything once, at a
small size.
"""

import argparse
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

# Read when Equinox and gradsolve are imported: for all contestants.
os.environ |= {"EQX_ON_ERROR": "nan", "GRADSOLVE_X64": "0"}

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_peers as peers
from jax_peers import by_diffrax_faq, by_gradsolve, by_jnode
from speed_workers import timed

import jnode
from jnode._process import keep_freed_memory
from jnode.linear import SpectralConv
from jnode.linear.spectral_conv import half_plane
from jnode.report.style import legend, new_figure, style, tidy, to_png

RESULTS = Path(__file__).parent / "results"
STEPS = (1, 2, 4, 8, 16)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
LIPSCHITZ = 2.0
MOST = 100_000  # steps of the reference
WANTED = (1e-2, 1e-3, 1e-4)  # errors for which the table shows the time
ACTIVATIONS = {"softplus": torch.nn.functional.softplus, "relu": torch.relu}


def by_frequencies(map_: SpectralConv) -> np.ndarray:
    """A convolution's matrices in the layout of `torch.fft.rfft2`."""
    height, width = map_.grid
    real, imaginary = (
        np.asarray(x).swapaxes(-1, -2) for x in (map_.real, map_.imaginary)
    )
    found = np.zeros((height, width, *real.shape[1:]), np.complex64)
    for i, (k, m, _) in enumerate(half_plane(height, width)):
        found[k, m] = real[i] + 1j * imaginary[i]
        found[-k % height, -m % width] = real[i] - 1j * imaginary[i]
    return found[:, : width // 2 + 1]


def in_torch(field, activation: str):
    """The same plain field in PyTorch."""
    channels, side = field.second_bias.size, field.first.grid[0]
    theirs = peers.CayleyField(
        channels,
        side,
        form="hoisted",
        lipschitz=LIPSCHITZ,
        activation=ACTIVATIONS[activation],
    )
    maps = np.stack([by_frequencies(m) for m in (field.first, field.second)])
    theirs.hoisted = torch.as_tensor(maps)
    return theirs


def solvers(field, theirs, states):
    """By contestant, a function that solves at each of its accuracies."""
    direct = diffrax.DirectAdjoint()

    def ours(make, name, adaptive):
        def runs(x):
            chosen = {"rtol": x, "atol": x / 10} if adaptive else {"steps": x}
            solve = eqx.filter_jit(make(field, jnode.Solver(name, **chosen)))
            return lambda: jax.block_until_ready(solve(field, states))

        return runs

    def torch_runs(make):
        y = torch.as_tensor(np.array(states)).permute(0, 3, 1, 2).contiguous()

        def runs(x):
            solve = make(x)

            def run():
                with torch.no_grad():
                    return solve(theirs, y)

            return run

        return runs

    pair = lambda x: (x, x / 10)
    fixed = {
        "jnode, rk4": ours(by_jnode, "rk4", False),
        "Diffrax, rk4": ours(by_diffrax_faq(direct), "rk4", False),
        "gradsolve, rk4": ours(by_gradsolve(states), "rk4", False),
        "torchdiffeq, rk4": torch_runs(
            lambda n: peers.torchdiffeq_solve("rk4", steps=n)
        ),
    }
    adaptive = {
        "jnode, dopri5": ours(by_jnode, "dopri5", True),
        "jnode, tsit5": ours(by_jnode, "tsit5", True),
        "Diffrax, dopri5": ours(by_diffrax_faq(direct), "dopri5", True),
        "gradsolve, tsit5": ours(by_gradsolve(states), "tsit5", True),
        "torchdiffeq, dopri5": torch_runs(
            lambda x: peers.torchdiffeq_solve("dopri5", tolerances=pair(x))
        ),
        "torchode, dopri5": torch_runs(
            lambda x: peers.torchode_solve("dopri5", pair(x))
        ),
    }
    return fixed, adaptive


def reference(field, states) -> np.ndarray:
    """In double precision, to about 1e-8: the kinks of ReLU, of which each unit of each
    state has its own, allow no more in a reasonable number of steps."""
    with jax.enable_x64(True):
        wide, y = jax.tree.map(
            lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x,
            (field, states),
        )
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(wide),
            diffrax.Dopri8(),
            0.0,
            1.0,
            None,
            jnp.moveaxis(y, 0, -2),
            stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-9),
            max_steps=MOST,
        )
        found = np.moveaxis(np.asarray(solution.ys[-1]), -2, 0)
    # Failures are NaN here (EQX_ON_ERROR).
    assert np.all(np.isfinite(found)), f"more than {MOST} steps"
    return found


def states_of(value) -> np.ndarray:
    """Of either framework, channels last, in double precision."""
    if isinstance(value, torch.Tensor):
        value = value.permute(0, 2, 3, 1)
    return np.asarray(value, np.float64)


def check_same(field, theirs, states) -> None:
    """**Raises:** `AssertionError` if the fields of the two frameworks differ."""
    y = torch.as_tensor(np.array(states)).permute(0, 3, 1, 2)
    with torch.no_grad():
        found = states_of(theirs(0.0, y))
    expected = states_of(jax.vmap(lambda y: field(0.0, y))(states))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def measure(activation: str, args) -> dict:
    """By contestant: accuracies asked for, errors and milliseconds."""
    shape = (args.side, args.side, args.channels)
    key = jax.random.key(0)
    field = jnode.OrthoField(
        shape, lipschitz=LIPSCHITZ, activation=activation, key=key
    ).bake()
    states = jnp.asarray(peers.numpy_batch(args.batch, args.side, args.channels)[0])
    theirs = in_torch(field, activation)
    check_same(field, theirs, states)
    best = reference(field, states)
    fixed, adaptive = solvers(field, theirs, states)
    steps = STEPS[:2] if args.quick else STEPS
    tolerances = TOLERANCES[:2] if args.quick else TOLERANCES
    asked = dict.fromkeys(fixed, steps) | dict.fromkeys(adaptive, tolerances)
    runs = {
        (name, x): runs(x)
        for name, runs in (fixed | adaptive).items()
        for x in asked[name]
    }
    norm = np.linalg.norm(best)
    errors = {
        k: np.linalg.norm(states_of(run()) - best) / norm for k, run in runs.items()
    }
    times = {key: [] for key in runs}
    for _ in range(args.rounds):
        for key, run in runs.items():
            run()  # PyTorch's threads spin for a while after the one before
            times[key].append(timed(run))
    found = {}
    for name, xs in asked.items():
        medians = [1e3 * np.median(times[name, x], axis=0) for x in xs]
        found[name] = {
            "asked": [*xs],
            "error": [float(errors[name, x]) for x in xs],
            "ms": [float(m[0]) for m in medians],
            "cpu": [float(m[1]) for m in medians],
        }
        print(activation, name, found[name], flush=True)
    return found


def time_for(row: dict, error: float) -> float | None:
    """The least time for an error of at most this, of the accuracies tried."""
    return min(
        (ms for ms, e in zip(row["ms"], row["error"], strict=True) if e <= error),
        default=None,
    )


def table(result: dict) -> str:
    lines = [
        f"Milliseconds of a solve whose relative error is at most so much: the fastest "
        f"of {len(STEPS)} numbers of steps or tolerances (atol a tenth of rtol). "
        f"Ortho, L = {LIPSCHITZ:g}, batch {result['batch']}, {result['side']} x "
        f"{result['side']} x {result['channels']}, {result['cores']} cores. All JAX "
        "contestants run with EQX_ON_ERROR=nan; Diffrax with DirectAdjoint, and StepTo "
        "for fixed steps.",
    ]
    for activation, rows in result["fields"].items():
        lines += [
            "",
            f"| {activation} | {' | '.join(f'{e:g}' for e in WANTED)} |",
            f"| --- | {' | '.join(['---:'] * len(WANTED))} |",
        ]
        for name, row in rows.items():
            times = [time_for(row, error) for error in WANTED]
            cells = ["–" if t is None else f"{t:.1f}" for t in times]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(["`python benchmarks/work_precision.py`", "", *lines]) + "\n"


def figure(result: dict):
    """A panel a field: error over time; libraries by colour, solvers by marker."""
    drawn = new_figure(7.6, 4.2)
    panels = drawn.subplots(1, len(result["fields"]), sharey=True, squeeze=False)[0]
    names = [name.split(", ") for name in next(iter(result["fields"].values()))]
    libraries, methods = (list(dict.fromkeys(x)) for x in zip(*names, strict=True))
    handles = {}
    for axes, (activation, rows) in zip(panels, result["fields"].items(), strict=True):
        for name, row in rows.items():
            library, method = name.split(", ")
            look = style(libraries.index(library))
            look["marker"] = style(methods.index(method))["marker"]
            look["linestyle"] = "-" if method == "rk4" else "--"
            handles[name] = axes.plot(row["ms"], row["error"], **look)[0]
        tidy(axes)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(activation, fontsize=10, loc="left")
        axes.set_xlabel("ms")
    panels[0].set_ylabel("relative error")
    legend(drawn, handles)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("batch", 64), ("channels", 32), ("side", 7), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", default=str(RESULTS / "work_precision"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.batch, args.channels, args.side, args.rounds = 2, 4, 4, 1
        args.out = tempfile.mkdtemp() + "/work_precision"
    keep_freed_memory()
    torch.set_num_threads(os.cpu_count() or 1)
    libraries = ("jax", "diffrax", "gradsolve", "torch", "torchdiffeq", "torchode")
    result = {
        **{name: getattr(args, name) for name in ("batch", "channels", "side")},
        "rounds": args.rounds,
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in libraries},
        "fields": {name: measure(name, args) for name in ACTIVATIONS},
    }
    out = Path(args.out)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(result))
    out.with_suffix(".png").write_bytes(to_png(figure(result)))
    print(table(result))


if __name__ == "__main__":
    main()
