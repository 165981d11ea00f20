"""The training loop."""

import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from jnode import data
from jnode._files import write_tree
from jnode._lock import locked
from jnode._versions import provenance
from jnode.data import Dataset
from jnode.models import ODEClassifier
from jnode.sharding import (
    check_divides,
    is_first,
    largest,
    local_rows,
    meet,
    replicate,
    shard_batch,
)
from jnode.train.checkpoints import Checkpoints
from jnode.train.config import TrainConfig
from jnode.train.errors import Interrupted, caught_signals, explained
from jnode.train.images import training_images
from jnode.train.log import Log, Trace, peak_memory, tensorboard_writer
from jnode.train.run_dir import RunDir, without_paths
from jnode.train.state import TrainState, init_state, learning_rate
from jnode.train.step import (
    Tally,
    add_step,
    check_tally,
    empty_tally,
    epoch_means,
    make_step,
)

AHEAD = 2  # steps given to the device before the first of them must be done
LOOK = 10  # steps between two looks at what the device counted


def train(
    config: TrainConfig,
    run_dir: str | os.PathLike,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    mesh: Mesh | None = None,
    checkpoint_every: int | None = None,
    tensorboard: bool = False,
    profile: int = 0,
) -> ODEClassifier:
    """Trains a model and writes its run folder.

    A checkpoint is written after every epoch, and before stopping on Ctrl-C or SIGTERM.
    A resumed run equals an uninterrupted one, on CPU bit for bit. The folder is locked
    meanwhile: one training at a time writes into it.

    **Arguments:**

    - `config`, `run_dir`: the configuration, and the folder.
    - `overwrite`, `resume`: replace a run that is there; go on with it.
    - `progress`: draw a progress bar.
    - `mesh`: over what devices to spread each batch (`jnode.sharding.data_mesh`; by
        default JAX's first device). With several processes, over those of all; each
        loads its rows, and the first alone writes and prints.
    - `checkpoint_every`: steps between checkpoints within an epoch; by default none.
    - `tensorboard`: write the metrics for TensorBoard too, into `tensorboard/`.
    - `profile`: how many steps to trace with `jax.profiler`, into `profile/`.

    **Returns:** the trained model.

    **Raises:** `FileExistsError` for a folder that holds something; `RuntimeError` for
    one that another training writes into; `ValueError` for bad configurations, a
    resumed run of another one, of another format or precision, or checkpoints none of
    which can be read; a `TrainingError` (`NonFiniteLossError`, `SolverFailedError`,
    `OutOfMemoryError`); `StorageError`; `Interrupted`; what `jnode.data.load` raises.
    """
    run = RunDir(run_dir)
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other: choose one.")
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(
            f"checkpoint_every must be at least 1, not {checkpoint_every}."
        )
    if profile < 0:
        raise ValueError(f"profile must be at least 0, not {profile}.")
    if resume:
        _check_resumable(run, config)
    if tensorboard:
        tensorboard_writer()
    share = check_divides(config.batch_size, mesh, accumulate=config.accumulate)
    dataset = training_images(config.data)
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
    with _owned(run, resume=resume, overwrite=overwrite):
        if not resume and is_first():
            run.create(overwrite=overwrite)
            run.write_config(
                config,
                image_shape=shape,
                classes=dataset.num_classes,
                num_train=len(dataset),
                **provenance(),
            )
        meet("the run folder is there")
        progress = progress and is_first()
        if progress:
            print(_sizes(config, mesh, share))
        with closing(Checkpoints(run.path, writing=True)) as kept:
            loop = _Loop(config, run, kept, total, mesh, checkpoint_every)
            loop.start(state, resume=resume)
            trace = Trace(run.path / "profile", begin=3, steps=profile)
            log = None
            if is_first():
                log = Log(run.path, loop.done, tensorboard=tensorboard)
            bar = tqdm(
                total=total, initial=loop.done, disable=not progress, unit="step"
            )
            with bar, closing(log) if log else nullcontext(), closing(trace):
                loop.run(dataset, log, trace, bar)
            if is_first():
                write_tree(run.path / "model.eqx", loop.state.model)
    return loop.state.model


@contextmanager
def _owned(run: RunDir, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Keeps the folder for this training: of several processes, the first locks it."""
    if is_first():
        if not resume:
            run.check_free(overwrite=overwrite)  # before a lock file is made there
        run.check_links()
    lock = locked(run.path, "training") if is_first() else nullcontext()
    with explained(run.path), lock:
        yield


def _check_resumable(run: RunDir, config: TrainConfig) -> None:
    there, _ = run.read_config()
    if there != without_paths(config):
        raise ValueError(
            f"{run.path} was started with another configuration: repeat its options, "
            "or start anew with --overwrite."
        )


class _Loop:
    """Where training stands, and how it goes on."""

    state: TrainState

    def __init__(self, config, run, checkpoints, total, mesh, every):
        self.config, self.run_dir, self.checkpoints = config, run, checkpoints
        self.total, self.per_epoch = total, total // config.epochs
        self.mesh, self.every, self.done = mesh, every, 0
        self.step = make_step(config, total, mesh)
        key = jax.random.key_data(jax.random.key(config.seed + 1))
        # What, with the step, the order of the images and all noise follow from.
        self.origin = {
            "seed": config.seed,
            "random_key": key.tolist(),
            "jax_enable_x64": bool(jax.config.jax_enable_x64),
        }

    def start(self, state: TrainState, *, resume: bool) -> None:
        self.state, self.tally = replicate((state, self._empty()), self.mesh)
        if resume:
            like = (self.state, self.tally)
            found = self.checkpoints.restore(like, self.origin)
            if found is not None:
                (self.state, self.tally), self.done = found

    def run(self, dataset: Dataset, log: Log | None, trace: Trace, bar: tqdm) -> None:
        begin = time.perf_counter()
        with caught_signals() as caught:
            for epoch in range(self.done // self.per_epoch, self.config.epochs):
                epoch_begin, before = time.perf_counter(), self.done
                compiling = self._epoch(dataset, epoch, trace, bar, caught)
                row = self._check()
                now = time.perf_counter()
                images = (self.done - before) * self.config.batch_size
                facts = {
                    "learning_rate": learning_rate(self.config, self.total, self.done),
                    "images_per_second": images / (now - epoch_begin - compiling),
                    **({"compile_seconds": compiling} if compiling else {}),
                    **peak_memory(),
                    "seconds": now - begin,
                }
                _show(bar, row)
                # Before the checkpoint: a run killed between the two repeats the
                # epoch, and the row is dropped and written again.
                if log is not None:
                    log.write({"step": self.done, "epoch": epoch + 1, **row, **facts})
                self.tally = replicate(self._empty(), self.mesh)
                self._save(row["loss"])
                number = self._asked(caught)
                if number:
                    self._stop(number, bar)

    def _epoch(self, dataset, epoch, trace, bar, caught) -> float:
        """Takes the steps that are left of an epoch; returns what compiling took."""
        skip = self.done - epoch * self.per_epoch
        compiling, running = 0.0, deque()
        for batch in _batches(dataset, self.config, epoch, self.mesh, skip=skip):
            begin = time.perf_counter()
            self.state, metrics = self.step(batch, self.state)
            self.tally = add_step(self.tally, metrics, self.state.step)
            if not self._compiled:
                self._compiled, compiling = True, time.perf_counter() - begin
            self.done += 1
            bar.update()
            trace.step(self.tally)
            running.append(self.tally)
            if len(running) > AHEAD:
                # So that a signal or a bad step is answered soon.
                finished = jax.block_until_ready(running.popleft())
                if self.done % LOOK == 0:
                    _show(bar, self._check(finished))
                    self.checkpoints.check()
            if self.done % self.per_epoch == 0:
                break  # a signal waits for the epoch's row
            number = self._asked(caught)
            if number:
                self._stop(number, bar)
            if self.every is not None and self.done % self.every == 0:
                self._check()
                self._save()
        return compiling

    _compiled = False

    def _asked(self, caught: list[int]) -> int:
        """The signal that asks to stop, or 0; the same in every process.

        Several processes ask each other only now and then, since it makes them wait.
        """
        if jax.process_count() > 1 and self.done % LOOK and self.done % self.per_epoch:
            return 0
        return largest(caught[0] if caught else 0)

    def _empty(self):
        return empty_tally(self.config.loss)

    def _check(self, sums: Tally | None = None) -> dict:
        """Looks at a tally, by default of all steps; returns its means."""
        found = jax.device_get(self.tally if sums is None else sums)
        steps = self.checkpoints.steps()
        last = str(self.checkpoints.path(steps[-1])) if steps else "none"
        check_tally(found, self.config, self.total, last)
        return epoch_means(found, self.config.batch_size)

    def _save(self, loss: float | None = None) -> Path:
        epoch, batch = divmod(self.done, self.per_epoch)
        facts = {"step": self.done, "epoch": epoch, "batch": batch, **self.origin}
        return self.checkpoints.save(self.done, (self.state, self.tally), facts, loss)

    def _stop(self, number: int, bar: tqdm) -> None:
        self._check()
        path = self._save()
        self.checkpoints.close()
        name = signal.Signals(number).name
        if is_first():
            bar.write(f"{name}: checkpoint {path}; go on with --resume.")
        raise Interrupted(128 + number)


def _sizes(config: TrainConfig, mesh: Mesh | None, share: int) -> str:
    """For people: `batch of 128 = 2 devices x 4 in turn x 16 images`."""
    devices = 1 if mesh is None else mesh.size
    turns = f" x {config.accumulate} in turn" if config.accumulate > 1 else ""
    plural = "s" if devices > 1 else ""
    return f"batch of {config.batch_size} = {devices} device{plural}{turns} x {share}"


def _batches(
    dataset: Dataset, config, epoch: int, mesh: Mesh | None, *, skip: int
) -> Iterator:
    rows = local_rows(config.batch_size, mesh)
    batches = data.batches(
        dataset, config.batch_size, seed=config.seed, epoch=epoch, rows=rows
    )
    for i, batch in enumerate(batches):
        if i >= skip:
            yield shard_batch(batch, mesh)


def _show(bar: tqdm, row: dict) -> None:
    bar.set_postfix_str(
        f"loss {row['loss']:.3f}, accuracy {row['accuracy']:.3f}, NFE {row['nfe']:.0f}"
    )
