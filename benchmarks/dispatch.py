"""What it costs to start training steps, one at a time or many.

    python benchmarks/dispatch.py

Steps of real presets on images of noise, interleaved: each step a program of its own,
on a batch that the host picks and copies; and the training loop's program, which picks
batches on the device, with one step at a time and with ten. All three end in the same
state, bit for bit, which is checked.

Then the host's own work: seconds that the processor spends in the main thread of a real
training run of a tiny model, from one dispatch to the next, compilation left out.
Writes benchmarks/results/dispatch.json and .md. Some five minutes on two cores.
"""

import dataclasses
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jnode
from jnode import data
from jnode._files import write_json
from jnode._process import run, versions
from jnode.train import DataConfig, LossConfig, TrainConfig, get_preset, loop, train
from jnode.train.step import (
    TrainState,
    add_step,
    empty_metrics,
    init_state,
    make_step,
    make_steps,
)

RESULTS = Path(__file__).parent / "results"
PRESETS = {"certified_cifar10": (32, 32, 3), "ortho": (28, 28, 1)}
MANY = 10
FROM_HOST, ONE, TEN = "from the host", "1 a dispatch", f"{MANY} a dispatch"
TINY = TrainConfig(
    data=DataConfig(num_train=4000),
    model=jnode.ModelConfig("gradient_flow", patch=7, features=49, hidden=8),
    solver=jnode.Solver("euler", steps=1),
    loss=LossConfig("margin", rho=0.1),
    epochs=1,
    batch_size=2,
)


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes benchmarks/results/dispatch.json and dispatch.md."""

    steps: int = 20
    """Steps of each contestant a round, a multiple of ten."""

    rounds: int = 5
    """Rounds, of which the median is told."""


class Contestant:
    """A way to take the training steps of one epoch."""

    def __init__(self, config: TrainConfig, dataset: data.Dataset, total: int):
        self.config, self.dataset = config, dataset
        sizes = {"image_shape": dataset.image_shape, "classes": dataset.num_classes}
        self.state: TrainState = init_state(config, **sizes, total_steps=total)
        self.totals = empty_metrics(config.loss)
        self.done = 0


class FromHost(Contestant):
    """A program for each step, on batches that the host picks and copies."""

    def __init__(self, config: TrainConfig, dataset: data.Dataset, total: int):
        super().__init__(config, dataset, total)
        self.step = make_step(config, total)
        self.batches = data.batches(dataset, config.batch_size, seed=0, epoch=0)

    def take(self, steps: int) -> None:
        running = deque()
        for _ in range(steps):
            batch = jax.tree.map(jnp.asarray, next(self.batches))
            self.state, metrics = self.step(batch, self.state)
            self.totals = add_step(self.totals, metrics, self.state.step)
            running.append(self.totals)
            if len(running) > 2:
                jax.block_until_ready(running.popleft())
        jax.block_until_ready(self.totals)


class OnDevice(Contestant):
    """The program of the training loop, so many steps a dispatch."""

    def __init__(self, config, dataset: data.Dataset, total: int, many: int):
        super().__init__(config, dataset, total)
        self.steps, self.many = make_steps(config, total), many
        self.feed = data.Feed(dataset, config.batch_size, seed=0, longest=many)

    def take(self, steps: int) -> None:
        for _ in range(0, steps, self.many):
            count = min(self.many, steps)
            number = jnp.asarray(count, jnp.int32)
            given = self.feed(self.done, count), self.totals, number
            self.state, self.totals = self.steps(given, self.state)
            self.done += count
        jax.block_until_ready(self.totals)


def speeds(name: str, args: Args) -> dict:
    """Milliseconds a step of each contestant, and whether all end in the same state."""
    config, shape = get_preset(name), PRESETS[name]
    total = 1 + args.steps * args.rounds
    rng = np.random.default_rng(0)
    number = config.batch_size * total
    images = rng.integers(0, 256, (number, *shape), dtype=np.uint8)
    labels = rng.integers(0, 10, number).astype(np.int32)
    dataset = data.Dataset("noise", "train", images, labels, 10)
    contestants: dict[str, FromHost | OnDevice] = {
        FROM_HOST: FromHost(config, dataset, total),
        ONE: OnDevice(config, dataset, total, 1),
        TEN: OnDevice(config, dataset, total, MANY),
    }
    taken = {key: [] for key in contestants}
    for contestant in contestants.values():
        contestant.take(1)  # compiles
    for _ in range(args.rounds):
        for key, contestant in contestants.items():
            begin = time.perf_counter()
            contestant.take(args.steps)
            taken[key].append(1e3 * (time.perf_counter() - begin) / args.steps)
        print(name, {k: round(v[-1], 1) for k, v in taken.items()}, flush=True)
    first, *others = (
        jax.tree.leaves(eqx.filter((c.state, c.totals), eqx.is_array))
        for c in contestants.values()
    )
    same = all(
        np.array_equal(a, b)
        for other in others
        for a, b in zip(first, other, strict=True)
    )
    return {"preset": name, "milliseconds": taken, "bit_identical": same}


def host_of_a_run(many: int) -> dict:
    """What the host does from one dispatch of a training run to the next."""
    begun, counts = [], []

    def made(*args):
        steps = make_steps(*args)

        def call(given, state):
            begun.append(time.thread_time())
            counts.append(int(given[2]))
            return steps(given, state)

        return call

    loop.make_steps = made
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run"
            train(TINY, path, progress=False, steps_per_dispatch=many)
    finally:
        loop.make_steps = make_steps
    # The first compiles.
    taken = 1e6 * np.diff(begun[1:]) / counts[1:-1]
    return {"most": many, "dispatches": len(counts), "microseconds": taken.tolist()}


def host_before(steps: int = 1000) -> dict:
    """The same of programs of one step each, on batches from the host."""
    contestant = FromHost(TINY, data.load(), steps + 10)
    contestant.take(10)
    begin = time.thread_time()
    contestant.take(steps)
    taken = 1e6 * (time.thread_time() - begin) / steps
    return {"most": FROM_HOST, "dispatches": 2 * steps, "microseconds": [taken]}


def tables(found: dict) -> str:
    lines = [
        f"| preset | {FROM_HOST}, ms a step | {ONE} | {TEN} | bit-identical |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for row in found["speed"]:
        medians = [f"{statistics.median(v):.1f}" for v in row["milliseconds"].values()]
        same = "yes" if row["bit_identical"] else "NO"
        lines.append(f"| {row['preset']} | {' | '.join(medians)} | {same} |")
    lines += [
        "",
        "| steps a dispatch | dispatches | host, µs a step |",
        "| --- | ---: | ---: |",
    ]
    for row in found["host"]:
        mean = statistics.mean(row["microseconds"])
        lines.append(f"| {row['most']} | {row['dispatches']} | {mean:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    host = [host_before(), *(host_of_a_run(many) for many in (1, 4, 50))]
    speed = [speeds(name, args) for name in PRESETS]
    found = {"speed": speed, "host": host, "versions": versions()}
    write_json(RESULTS / "dispatch.json", found)
    (RESULTS / "dispatch.md").write_text(tables(found))
    print(tables(found))


if __name__ == "__main__":
    run(main)
