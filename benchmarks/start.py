"""How long a fresh process takes to its first training step: python benchmarks/start.py

Each case runs in processes of its own, in turn: with an empty compilation cache, and
with the cache that its first process left. Of each process: the time and the processor
time of all its threads (which hardly depends on what else the machine does) from the
start of Python to the end of the imports, of building the model and its optimiser, and
of the first training step; and how many programs were compiled, or read from the cache.
Needs no data. Writes OUT.json and OUT.md.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
STAGES = ("imports", "model", "first step")
CASES = {
    "Ortho, rk4x4": ("field", "rk4", False),
    "Ortho, rk4x4, throw=True": ("field", "rk4", True),
    "Ortho, dopri5, rtol 1e-3, atol 1e-4": ("field", "dopri5", False),
    "preset certified_mnist": ("preset", "certified_mnist", False),
    "preset ortho": ("preset", "ortho", False),
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Times the starts of fresh processes."""

    case: tuple[str, ...] = tuple(CASES)
    """Which cases; see the table."""

    rounds: int = 3
    """Pairs of processes of each case; the medians count."""

    out: str = str(RESULTS / "start")
    """Where to write: OUT.json and OUT.md."""


class Marks:
    """By stage, the time since the process began, and JAX's programs until then."""

    def __init__(self):
        self.found, self.events = {}, {"programs": 0, "from cache": 0}

    def listen(self):
        import jax

        def compiled(event, duration_secs, **_):
            if event == "/jax/core/compile/backend_compile_duration":
                self.events["programs"] += 1

        def read(event, **_):
            if event == "/jax/compilation_cache/cache_hits":
                self.events["from cache"] += 1

        jax.monitoring.register_event_duration_secs_listener(compiled)
        jax.monitoring.register_event_listener(read)

    def mark(self, stage):
        # Both since the process began: imports of the standard library count too.
        cpu, wall = time.process_time(), time.time() - float(os.environ["BEGUN"])
        self.found[stage] = {"seconds": wall, "cpu": cpu, **self.events}


def one_field(name: str, throw: bool, marks: Marks):
    """A classifier of an Ortho field and a head, as in benchmarks/speed.py."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax

    import jnode
    from jnode.models import Head
    from jnode.solvers import solve_batch

    marks.listen()
    marks.mark("imports")
    fixed = jnode.Solver("rk4", steps=4)
    adaptive = jnode.Solver("dopri5", rtol=1e-3, atol=1e-4)
    solver = fixed if name == "rk4" else adaptive
    field = jnode.OrthoField((7, 7, 64), key=jax.random.key(0))
    head = Head(7 * 7 * 64, 10, unit_norm=False, key=jax.random.key(1))
    optimizer, params = optax.adam(1e-4), (field, head)
    state = optimizer.init(eqx.filter(params, eqx.is_inexact_array))
    rng = np.random.default_rng(0)
    images = 0.3 * rng.standard_normal((128, 7, 7, 64), np.float32)
    labels = rng.integers(0, 10, 128)
    marks.mark("model")

    def loss(params, y):
        field, head = params
        ends = solve_batch(field, y, solver, throw=throw).y.reshape(len(y), -1)
        scores = jax.vmap(head)(ends)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    @eqx.filter_jit
    def step(params, state, y):
        grads = eqx.filter_grad(loss)(params, y)
        updates, state = optimizer.update(grads, state)
        return eqx.apply_updates(params, updates), state

    jax.block_until_ready(step(params, state, jnp.asarray(images)))
    marks.mark("first step")


def one_preset(name: str, marks: Marks):
    """The training step of a preset, on random images."""
    import jax
    import jax.numpy as jnp

    from jnode.train import get_preset
    from jnode.train.step import init_state, make_step

    marks.listen()
    marks.mark("imports")
    config = get_preset(name)
    shape = (32, 32, 3) if "cifar" in config.data.name else (28, 28, 1)
    state = init_state(config, image_shape=shape, classes=10, total_steps=1000)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (config.batch_size, *shape), np.uint8))
    labels = jnp.asarray(rng.integers(0, 10, config.batch_size, np.int32))
    marks.mark("model")
    jax.block_until_ready(make_step(config, 1000)((images, labels), state))
    marks.mark("first step")


def alone(case: str) -> None:
    """Runs one case in this process, and prints its stages."""
    kind, name, throw = CASES[case]
    marks = Marks()
    if kind == "field":
        one_field(name, throw, marks)
    else:
        one_preset(name, marks)
    print(json.dumps(marks.found))


def in_fresh_process(case: str, cache: str) -> dict:
    env = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # as scripts set it
        "BEGUN": repr(time.time()),
    }
    command = [sys.executable, __file__, "--one", case]
    return json.loads(subprocess.check_output(command, env=env, text=True))


def measure(cases: tuple[str, ...], rounds: int) -> dict:
    """By case, then empty or cached, then stage: medians since the process began."""
    runs: dict = {case: {"empty": [], "cached": []} for case in cases}
    for _ in range(rounds):
        for case in cases:
            with tempfile.TemporaryDirectory() as cache:
                for kind in ("empty", "cached"):
                    runs[case][kind].append(in_fresh_process(case, cache))
                    print(case, kind, runs[case][kind][-1], flush=True)
    return {
        case: {kind: _medians(found) for kind, found in kinds.items()}
        for case, kinds in runs.items()
    }


def _medians(found: list[dict]) -> dict:
    return {
        stage: {
            key: float(np.median([one[stage][key] for one in found]))
            for key in found[0][stage]
        }
        for stage in STAGES
    }


def table(result: dict) -> str:
    lines = [
        "Seconds from the start of Python to the end of each stage, and in brackets "
        "the processor time of all threads; then the programs until the end "
        f"of the first step. {result['cores']} cores, jax {result['versions']['jax']}, "
        f"medians of {result['rounds']} processes of each kind.",
        "",
        f"| case | cache | {' | '.join(STAGES)} | programs | from the cache |",
        f"| --- | --- | {' | '.join(['---:'] * (len(STAGES) + 2))} |",
    ]
    for case, kinds in result["cases"].items():
        for kind, stages in kinds.items():
            cells = [f"{s['seconds']:.1f} ({s['cpu']:.1f})" for s in stages.values()]
            last = stages["first step"]
            counts = f"{last['programs']:.0f} | {last['from cache']:.0f}"
            lines.append(f"| {case} | {kind} | {' | '.join(cells)} | {counts} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    import tyro

    from jnode._files import write_json
    from jnode._process import versions

    args = tyro.cli(Args, description=__doc__)
    unknown = set(args.case) - set(CASES)
    if unknown:
        raise ValueError(f"case must be of {', '.join(CASES)}, not {unknown.pop()}.")
    result = {
        "cases": measure(args.case, args.rounds),
        "rounds": args.rounds,
        "cores": os.cpu_count(),
        "versions": versions(),
    }
    write_json(Path(args.out).with_suffix(".json"), result)
    Path(args.out).with_suffix(".md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    # Without an import of its own, so that a case's imports are all that it times.
    if sys.argv[1:2] == ["--one"]:
        alone(sys.argv[2])
    else:
        main()
