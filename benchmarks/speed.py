"""How fast jnode trains, infers and attacks, beside its peers, in one run.

    python benchmarks/speed.py [--batch 128] [--channels 64] [--side 7] [--rounds 9]

All contestants do the same work on the same states, in turn, round after round; a table
row is the median of its rounds (of one round, where a call takes over a second) and
its ratio to jnode's. Then the sizes are changed one after another, and each contestant
is started in a process of its own, twice, to see its first step, its first step with
JAX's compilation cache, and its memory. JAX and PyTorch
use a GPU if there is one. Needs the other libraries (CONTRIBUTING.md) and a C++
compiler for torch.compile. Writes benchmarks/results/speed.{json,md,png}; with
`--part` only some of it. `--quick` runs every row once, at a small size.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from speed_contestants import (
    ADAPTIVE,
    OPERATIONS,
    Sizes,
    contestants,
    environment,
    nfe,
    work_of,
)
from speed_figure import figure
from speed_table import table
from speed_workers import LIMIT, Worker, timed

from jnode._process import keep_freed_memory
from jnode.report.style import to_png

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("jax", "torch", "diffrax", "gradsolve", "torchdiffeq", "torchode")
PARTS = ("groups", "sizes", "starts")
SIZES = {"batch": (1, 32, 512), "channels": (16, 128), "side": (8, 16, 32)}
QUICK = {"batch": (1,), "side": (6,)}
# Of each group, who is asked at other sizes.
FEW = {
    "Ortho, rk4x4": ("jnode", "lax.scan by hand", "torchdiffeq, Cayley hoisted"),
    "ODENet (zero-padded), rk4x4": ("jnode", "torchdiffeq"),
    "Ortho, dopri5, rtol 1e-3, atol 1e-4": (
        "jnode",
        "torchdiffeq, Cayley hoisted",
        "torchode, Cayley hoisted",
    ),
}


def measure(group, rounds, sizes, names=None):
    """By contestant and operation, medians of milliseconds and of processor time.

    A contestant that cannot do it is the reason instead.
    """
    makers = {n: m for n, m in contestants(sizes)[group].items() if n in (names or [n])}
    workers = {
        name: Worker(sizes, group, name, environment(name))
        for name in makers
        if environment(name) is not None
    }
    found, runs = {}, {}
    try:
        for name, make in makers.items():
            try:
                runs |= _warm(name, workers.get(name), make, rounds)
            except Exception as error:  # whatever a peer raises is a result
                found[name] = str(error)
        times = {key: [] for key in runs}
        for turn in range(rounds):
            # Another first each time, and each called once before it is timed: threads
            # of PyTorch's go on spinning after a call, on cores that the next is to
            # have.
            first = turn * len(OPERATIONS) % max(len(runs), 1)
            keys = [*runs][first:] + [*runs][:first]
            for key in keys:
                run, wanted = runs[key]
                if turn < wanted:
                    run()
                    times[key].append(run())
    finally:
        for worker in workers.values():
            worker.close()
    for name in {name for name, _ in runs} - found.keys():
        medians = {o: 1e3 * np.median(times[name, o], axis=0) for o in OPERATIONS}
        found[name] = {o: {"ms": x[0], "cpu": x[1]} for o, x in medians.items()}
    return {name: found[name] for name in makers}


def _warm(name, worker, make, rounds):
    """Each operation as a function that times itself, and how often to call it."""
    if worker:
        made = {operation: partial(worker.time, operation) for operation in OPERATIONS}
    else:
        made = {operation: partial(timed, run) for operation, run in make().items()}
    runs = {}
    for operation, run in made.items():
        run()
        runs[name, operation] = (run, 1 if run()[0] > 1 else rounds)
    return runs


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
        for name in [*names][: 1 if args.quick else None]:
            with tempfile.TemporaryDirectory() as cache:
                env = {
                    **os.environ,
                    **(environment(name) or {}),
                    "JAX_COMPILATION_CACHE_DIR": cache,
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                }
                command = [sys.executable, __file__, "--alone", group, name]
                command += [f"--{k}={v}" for k, v in sizes_of(args)._asdict().items()]
                try:
                    both = [_started(command, env) for _ in range(2)]
                except (subprocess.SubprocessError, ValueError) as error:
                    print(group, name, error, flush=True)
                    continue
            found.setdefault(group, {})[name] = {
                "first": both[0]["first"],
                "cached": both[1]["first"],
                "megabytes": both[0]["megabytes"],
            }
            print(group, name, found[group][name], flush=True)
    return found


def _started(command, env):
    out = subprocess.check_output(command, env=env, text=True, timeout=2 * LIMIT)
    return json.loads(out.splitlines()[-1])


def at_sizes(args):
    """Yields the operations of a few, one size changed at a time."""
    for axis, values in (QUICK if args.quick else SIZES).items():
        for value in values:
            sizes = sizes_of(args)._replace(**{axis: value})
            for group, names in FEW.items():
                times = measure(group, min(args.rounds, 5), sizes, names)
                row = {"axis": axis, "value": value, "group": group, "times": times}
                if "dopri5" in group:
                    row["nfe"] = nfe(sizes)
                print(row, flush=True)
                yield row


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
    parser.add_argument(
        "--quick", action="store_true", help="small and once: whether each row works"
    )
    args = parser.parse_args()
    if args.quick:
        args.batch, args.channels, args.side, args.rounds = 4, 8, 5, 1
        if args.out == parser.get_default("out"):
            args.out = tempfile.mkdtemp() + "/speed"
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
        "versions": {name: version(name) for name in LIBRARIES},
    }

    def keep(**found):
        result.update(found)
        path.write_text(json.dumps(result, indent=1) + "\n")
        out.with_suffix(".md").write_text(table(result))
        if result.get("groups"):
            out.with_suffix(".png").write_bytes(to_png(figure(result)))

    if "groups" in args.part:
        keep(ceiling=ceiling(), nfe=nfe(sizes), work=work_of(sizes), groups={})
        for group in groups:
            times = measure(group, args.rounds, sizes)
            keep(groups=result["groups"] | {group: times})
            print(group, times, flush=True)
    if "sizes" in args.part:
        rows = []
        for row in at_sizes(args):
            rows.append(row)
            keep(sizes=rows)
    if "starts" in args.part:
        keep(starts=starts(args, groups))
    print(table(result))


if __name__ == "__main__":
    main()
