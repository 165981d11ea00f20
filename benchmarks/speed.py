"""How fast jnode trains, infers and attacks, beside its peers, in one run.

    python benchmarks/speed.py [--batch 128] [--channels 64] [--side 7] [--rounds 9]

All contestants do the same work on the same states, in turn, round after round; a table
row is the median of its rounds (of one round, where a call takes over a second) and
its ratio to jnode's. Then the sizes are changed one after another, and each contestant
is started in a process of its own, twice, to see its first step, its first step with
JAX's compilation cache, and its memory. Needs the other
libraries (CONTRIBUTING.md). Writes benchmarks/results/speed.{json,md,png}; with
`--part` only some of it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from speed_contestants import ADAPTIVE, OPERATIONS, Sizes, contestants, nfe, work_of
from speed_figure import figure
from speed_table import table

from jnode._process import keep_freed_memory
from jnode.report.style import to_png

RESULTS = Path(__file__).parent / "results"
PARTS = ("groups", "sizes", "starts")
SIZES = {"batch": (1, 32, 512), "channels": (16, 128), "side": (8, 16)}
# Of each group, who is asked at other sizes.
FEW = {
    "Ortho, rk4x4": ("jnode", "lax.scan by hand", "torchdiffeq, Cayley hoisted"),
    "ODENet (zero-padded), rk4x4": ("jnode", "torchdiffeq"),
    "Ortho, dopri5, rtol 1e-3, atol 1e-4": ("jnode", "torchdiffeq, Cayley hoisted"),
}


def measure(group, rounds):
    """Medians in milliseconds of each contestant's operations."""
    runs = {}
    for name, make in group.items():
        for operation, run in make().items():
            run()
            start = time.perf_counter()
            run()
            slow = time.perf_counter() - start > 1
            runs[name, operation] = (run, 1 if slow else rounds)
    times = {key: [] for key in runs}
    for turn in range(rounds):
        # Another first each time, and each called once before it is timed: threads of
        # PyTorch's go on spinning after a call, on cores that the next is to have.
        first = turn * len(OPERATIONS) % len(runs)
        keys = [*runs][first:] + [*runs][:first]
        for key in keys:
            run, wanted = runs[key]
            if turn < wanted:
                run()
                start = time.perf_counter()
                run()
                times[key].append(time.perf_counter() - start)
    return {
        name: {o: float(np.median(times[name, o])) * 1e3 for o in OPERATIONS}
        for name in group
    }


def ceiling():
    """GFLOP/s of a large float32 matrix product, and of a 3x3 convolution."""
    a = jnp.ones((1024, 1024))
    maps, kernel = jnp.ones((128, 16, 16, 64)), jnp.ones((3, 3, 64, 64))
    conv = lambda x: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = {}
    for name, f, x, flops in (
        ("matmul", lambda a: a @ a, a, 2 * 1024**3),
        ("convolution", conv, maps, 2 * maps.size * 9 * 64),
    ):
        f = jax.jit(f)
        f(x).block_until_ready()
        times = []
        for _ in range(15):
            start = time.perf_counter()
            f(x).block_until_ready()
            times.append(time.perf_counter() - start)
        found[name] = flops / float(np.median(times)) / 1e9
    return found


def alone(sizes, group, name):
    """In a process of its own: the first training step, and the memory it took."""
    before = peak_megabytes()
    run = contestants(sizes)[group][name]()["training step"]
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    run()
    found = {"first": first, "megabytes": peak_megabytes() - before}
    print(json.dumps(found))


def peak_megabytes():
    """Of resident memory. `getrusage` would tell of the process that started this."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def starts(args, groups):
    """Of each contestant: what `alone` says, cold and with the cache."""
    found = {}
    for group, names in groups.items():
        for name in names:
            with tempfile.TemporaryDirectory() as cache:
                env = {
                    **os.environ,
                    "JAX_COMPILATION_CACHE_DIR": cache,
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                }
                command = [sys.executable, __file__, "--alone", group, name]
                command += [f"--{k}={v}" for k, v in sizes_of(args)._asdict().items()]
                both = [
                    json.loads(subprocess.check_output(command, env=env, text=True))
                    for _ in range(2)
                ]
            found.setdefault(group, {})[name] = {
                "first": both[0]["first"],
                "cached": both[1]["first"],
                "megabytes": both[0]["megabytes"],
            }
            print(group, name, found[group][name], flush=True)
    return found


def at_sizes(args):
    """The training step and inference of a few, one size changed at a time."""
    rows = []
    for axis, values in SIZES.items():
        for value in values:
            sizes = sizes_of(args)._replace(**{axis: value})
            for group, names in FEW.items():
                makers = contestants(sizes)[group]
                times = measure({n: makers[n] for n in names}, min(args.rounds, 5))
                row = {"axis": axis, "value": value, "group": group, "times": times}
                if "dopri5" in group:
                    row["nfe"] = nfe(sizes)
                rows.append(row)
                print(row, flush=True)
    return rows


def sizes_of(args):
    return Sizes(args.batch, args.channels, args.side)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("batch", 128), ("channels", 64), ("side", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", default=str(RESULTS / "speed"))
    args = parser.parse_args()
    keep_freed_memory()  # as jnode's scripts do; for all contestants
    torch.set_num_threads(os.cpu_count() or 1)
    sizes = sizes_of(args)
    if args.alone:
        return alone(sizes, *args.alone)
    out = Path(args.out)
    path = out.with_suffix(".json")
    result = json.loads(path.read_text()) if path.is_file() else {}
    groups = contestants(sizes)
    result |= {
        **sizes._asdict(),
        "rounds": args.rounds,
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "tolerances": ADAPTIVE.tolerances,
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
    }

    def keep(**found):
        result.update(found)
        path.write_text(json.dumps(result, indent=1) + "\n")
        out.with_suffix(".md").write_text(table(result))
        if result.get("groups"):
            out.with_suffix(".png").write_bytes(to_png(figure(result)))

    if "groups" in args.part:
        keep(ceiling=ceiling(), nfe=nfe(sizes), work=work_of(sizes), groups={})
        for group, makers in groups.items():
            times = measure(makers, args.rounds)
            keep(groups=result["groups"] | {group: times})
            print(group, times, flush=True)
    if "sizes" in args.part:
        keep(sizes=at_sizes(args))
    if "starts" in args.part:
        keep(starts=starts(args, groups))
    print(table(result))


if __name__ == "__main__":
    main()
