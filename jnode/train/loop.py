"""The training loop."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from jnode import data
from jnode._versions import versions
from jnode.data import Dataset
from jnode.models import ODEClassifier
from jnode.sharding import check_divides, replicate, shard_batch
from jnode.train.config import TrainConfig
from jnode.train.files import write_tree
from jnode.train.run_dir import RunDir
from jnode.train.state import TrainState, init_state
from jnode.train.step import make_step


class Interrupted(SystemExit):
    """Training stopped by a signal after its checkpoint; exits with 128 + signal."""


class NonFiniteLossError(RuntimeError):
    """The loss ceased to be finite."""


def train(
    config: TrainConfig,
    run_dir: str | os.PathLike,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    mesh: Mesh | None = None,
) -> ODEClassifier:
    """Trains a model and writes its run folder.

    A checkpoint is written after every epoch, and before stopping on Ctrl-C or SIGTERM.
    A resumed run equals an uninterrupted one, on CPU bit for bit.

    **Arguments:** the configuration; the folder; whether to replace a run that is
    there; whether to continue it; whether to draw a progress bar; over what devices to
    spread each batch (`jnode.sharding.data_mesh`; by default JAX's first device).

    **Returns:** the trained model.

    **Raises:** `FileExistsError` for a folder in use, `ValueError` for bad
    configurations or a resumed run of another one, `NonFiniteLossError`,
    `Interrupted`; whatever `jnode.data.load` raises.
    """
    run = RunDir(run_dir)
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other: choose one.")
    if resume and run.read_config()[0] != config:
        raise ValueError(
            f"{run.path} was started with another configuration: repeat its options, "
            "or start anew with --overwrite."
        )
    share = check_divides(config.batch_size, mesh, accumulate=config.accumulate)
    dataset = data.load(config.data.name, split="train", data_dir=config.data.dir)
    if config.data.num_train is not None:
        dataset = dataset.take(config.data.num_train)
    steps_per_epoch = len(dataset) // config.batch_size
    if steps_per_epoch == 0:
        raise ValueError(
            f"batch_size must be at most the {len(dataset)} training images, "
            f"not {config.batch_size}."
        )
    total = steps_per_epoch * config.epochs
    shape = dataset.image_shape
    state = init_state(
        config, image_shape=shape, classes=dataset.num_classes, total_steps=total
    )
    if resume:
        state = run.read_checkpoint(state) or state
        _truncate(run.metrics, int(state.step))
    else:
        run.create(overwrite=overwrite)
        run.write_config(
            config,
            image_shape=shape,
            classes=dataset.num_classes,
            num_train=len(dataset),
            versions=versions(),
        )
    if progress:
        print(_sizes(config, mesh, share))
    state = _run(config, run, dataset, state, total, progress, mesh)
    write_tree(run.path / "model.eqx", state.model)
    return state.model


def _run(config, run, dataset, state, total, progress, mesh) -> TrainState:
    step = make_step(config, total, mesh)
    state = replicate(state, mesh)
    per_epoch = total // config.epochs
    start = time.perf_counter()
    done = int(state.step)
    bar = tqdm(total=total, initial=done, disable=not progress, unit="step")
    with bar, _signals() as caught, open(run.metrics, "a") as log:
        for epoch in range(done // per_epoch, config.epochs):
            rows = []
            skip = done - epoch * per_epoch
            for batch in _batches(dataset, config, epoch, mesh, skip=skip):
                state, metrics = step(batch, state)
                rows.append(metrics)
                done += 1
                bar.update()
                if len(rows) % 10 == 1:
                    _show(bar, metrics, done)
                if caught:
                    path = run.write_checkpoint(state)
                    name = signal.Signals(caught[0]).name
                    bar.write(f"{name}: checkpoint {path}; go on with --resume.")
                    raise Interrupted(128 + caught[0])
            # One transfer an epoch: the device is not kept waiting for the host.
            rows = jax.device_get(rows)
            means = {k: float(sum(r[k] for r in rows) / len(rows)) for k in rows[0]}
            _check(means["loss"], done, run)
            run.write_checkpoint(state)
            seconds = time.perf_counter() - start
            row = {"step": done, "epoch": epoch + 1, **means, "seconds": seconds}
            log.write(json.dumps(row) + "\n")
            log.flush()
            _show(bar, means, done)
    return state


def _sizes(config: TrainConfig, mesh: Mesh | None, share: int) -> str:
    """For people: `batch of 128 = 2 devices x 4 in turn x 16 images`."""
    devices = 1 if mesh is None else mesh.size
    turns = f" x {config.accumulate} in turn" if config.accumulate > 1 else ""
    plural = "s" if devices > 1 else ""
    return f"batch of {config.batch_size} = {devices} device{plural}{turns} x {share}"


def _batches(
    dataset: Dataset, config, epoch: int, mesh: Mesh | None, *, skip: int
) -> Iterator:
    batches = data.batches(dataset, config.batch_size, seed=config.seed, epoch=epoch)
    for i, batch in enumerate(batches):
        if i >= skip:
            yield shard_batch(batch, mesh)


def _show(bar, metrics, step) -> None:
    bar.set_postfix_str(
        f"loss {float(metrics['loss']):.3f}, accuracy {float(metrics['accuracy']):.3f},"
        f" NFE {float(metrics['nfe']):.0f}"
    )


def _check(loss: float, step: int, run: RunDir) -> None:
    if loss != loss or abs(loss) == float("inf"):
        checkpoints = run.checkpoints()
        last = checkpoints[-1] if checkpoints else "none"
        raise NonFiniteLossError(
            f"The loss was {loss} in the epoch that ended at step {step}: lower "
            f"learning_rate; the last good checkpoint is {last}."
        )


def _truncate(metrics: Path, step: int) -> None:
    """Drops rows past the step that is resumed from."""
    if metrics.exists():
        lines = metrics.read_text().splitlines(keepends=True)
        kept = [s for s in lines if s.endswith("\n") and json.loads(s)["step"] <= step]
        metrics.write_text("".join(kept))


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that a step is never cut in two."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may set handlers
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    old = {s: signal.signal(s, lambda n, _: caught.append(n)) for s in kinds}
    try:
        yield caught
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
