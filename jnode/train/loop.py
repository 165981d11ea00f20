"""The training loop."""

import dataclasses
import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from tqdm import tqdm

from jnode._checks import check_positive
from jnode._files import in_bucket, locked
from jnode._process import Interrupted, caught_signals, peak_memory, provenance
from jnode._progress import progress_bar
from jnode.data import Feed
from jnode.models import ODEClassifier, save
from jnode.sharding import (
    all_reduce_max,
    barrier,
    check_divides,
    is_main_process,
    replicate,
)
from jnode.train.checkpoints import Checkpoints
from jnode.train.config import TrainConfig, training_images
from jnode.train.run_dir import (
    Log,
    RunDir,
    explained,
    tensorboard_writer,
    without_paths,
)
from jnode.train.step import (
    RunningMetrics,
    check_metrics,
    empty_metrics,
    epoch_means,
    init_state,
    learning_rate,
    make_steps,
)
from jnode.train.trace import Trace

AHEAD = 1  # dispatches that wait on the device while one is computed
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
    steps_per_dispatch: int | None = None,
    tensorboard: bool = False,
    profile: int = 0,
) -> ODEClassifier:
    """Trains a model and writes its run folder.

    A checkpoint is written after every epoch, and before stopping on Ctrl-C or SIGTERM.
    A resumed run equals an uninterrupted one, on CPU bit for bit. The folder is locked
    during training, so that only one training at a time writes into it.

    **Arguments:**

    - `config`, `run_dir`: the configuration, and the folder.
    - `overwrite`, `resume`: whether to replace an existing run; whether to continue it.
    - `progress`: whether to draw a progress bar.
    - `mesh`: the devices over which to shard each batch (`jnode.sharding.data_mesh`; by
        default JAX's first device). With several processes these are the devices of all
        of them, and only the first process writes and prints.
    - `checkpoint_every`: steps between checkpoints within an epoch; by default none.
    - `steps_per_dispatch`: the most steps that the host starts at a time, in one
        program; by default 4 on CPU and 50 elsewhere. More steps mean less work for the
        host, but a signal waits for them. The results are the same.
    - `tensorboard`: whether to write the metrics for TensorBoard too, into
        `tensorboard/`.
    - `profile`: how many steps to trace with `jax.profiler`, into `profile/`.

    **Returns:** the trained model.

    **Raises:** `FileExistsError` for a folder that is not empty; `RuntimeError` for one
    into which another training writes; `ValueError` for a bad configuration, for
    resuming a run with another configuration, format or precision, and if no checkpoint
    can be read; a `TrainingError`; `StorageError`; `Interrupted`, a
    `KeyboardInterrupt`, after a signal; and the errors of `jnode.data.load`.
    """
    run = RunDir(run_dir)
    _check_options(overwrite, resume, profile)
    _check_writers(run, tensorboard, profile)
    for name, number in (
        ("checkpoint_every", checkpoint_every),
        ("steps_per_dispatch", steps_per_dispatch),
    ):
        if number is not None:
            check_positive(**{name: number})
    if resume:
        _check_resumable(run, config)
    loop = _Loop(config, run, mesh, checkpoint_every, steps_per_dispatch)
    with _owned(run, resume=resume, overwrite=overwrite):
        loop.prepare(resume=resume, overwrite=overwrite)
        loop.run(resume, progress and is_main_process(), tensorboard, profile)
    return loop.state.model


def _check_options(overwrite, resume, profile) -> None:
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other: choose one.")
    if profile < 0:
        raise ValueError(f"profile must be at least 0, not {profile}.")


def _check_writers(run: RunDir, tensorboard: bool, profile: int) -> None:
    if tensorboard:
        tensorboard_writer()
    if in_bucket(run.path) and (tensorboard or profile):
        raise ValueError(
            f"tensorboard and profile need a run_dir on this machine, not {run.path}."
        )


def _options(config: Any, prefix: str = "") -> dict[str, Any]:
    """Each option of a configuration by its name on the command line."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        name, value = f"{prefix}{field.name}", getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        found |= _options(value, f"{name}.") if nested else {name: value}
    return found


def changed_options(run: RunDir, config: TrainConfig) -> list[str]:
    """The options of a run that a configuration has otherwise, in words."""
    there, _ = run.read_config()
    old, new = (_options(x) for x in (there, without_paths(config)))
    return [
        f"{name} was {value!r} and is {new.get(name)!r}"
        for name, value in old.items()
        if new.get(name) != value
    ]


def _check_resumable(run: RunDir, config: TrainConfig) -> None:
    changed = changed_options(run, config)
    if changed:
        raise ValueError(
            f"{run.path} was started with another configuration: {'; '.join(changed)}. "
            "Repeat its options, or start anew with --overwrite."
        )


@contextmanager
def _owned(run: RunDir, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Locks the folder for this training; of several processes only the first does."""
    if is_main_process():
        if not resume:
            run.check_free(overwrite=overwrite)  # before a lock file is made there
        run.check_links()
    lock = locked(run.path, "training") if is_main_process() else nullcontext()
    with explained(run.path), lock:
        yield


class _Loop:
    """The state of a training run, and its loop."""

    checkpoints: Checkpoints
    totals: RunningMetrics
    _compiled = False

    def __init__(
        self, config: TrainConfig, run: RunDir, mesh: Mesh | None, every, most
    ):
        self.config, self.run_dir, self.mesh = config, run, mesh
        self.every, self.done = every, 0
        self.most = most or (4 if jax.default_backend() == "cpu" else 50)
        # Checked first, since it needs no data.
        self.share = check_divides(
            config.batch_size, mesh, accumulate=config.accumulate
        )
        self.dataset = training_images(config.data)
        self.per_epoch = len(self.dataset) // config.batch_size
        if self.per_epoch == 0:
            raise ValueError(
                f"batch_size must be at most the {len(self.dataset)} training images, "
                f"not {config.batch_size}."
            )
        self.total = self.per_epoch * config.epochs
        self.sizes: dict[str, Any] = {
            "image_shape": self.dataset.image_shape,
            "classes": self.dataset.num_classes,
        }
        self.state = init_state(config, **self.sizes, total_steps=self.total)
        key = jax.random.key_data(jax.random.key(config.seed + 1))
        # Together with the step these determine the order of the images and all noise.
        self.origin = {
            "seed": config.seed,
            "random_key": key.tolist(),
            "order": "jax.random.permutation",
            "jax_enable_x64": jnp.zeros(()).dtype == jnp.float64,
        }

    def prepare(self, *, resume: bool, overwrite: bool) -> None:
        """Creates the run folder, unless the run is resumed."""
        if not resume and is_main_process():
            self.run_dir.create(overwrite=overwrite)
            number = len(self.dataset)
            facts = {**self.sizes, "num_train": number, **provenance()}
            self.run_dir.write_config(self.config, **facts)
        barrier("the run folder is there")

    def run(
        self, resume: bool, progress: bool, tensorboard: bool, profile: int
    ) -> None:
        """Trains to the end, and writes the model."""
        folder = self.run_dir.path
        if progress:
            print(_sizes(self.config, self.mesh, self.share))
        with ExitStack() as stack:
            kept = stack.enter_context(closing(Checkpoints(folder, writing=True)))
            self.checkpoints = kept
            self.steps = make_steps(self.config, self.total, self.mesh)
            self._start(resume)
            log = None
            if is_main_process():
                log = Log(folder, self.done, tensorboard=tensorboard)
                stack.enter_context(closing(log))
            shown = progress_bar(
                self.total, initial=self.done, show=progress, unit="step"
            )
            trace = Trace(folder / "profile", begin=3, steps=profile)
            with shown as bar, closing(trace):
                self._epochs(log, trace, bar)
            if is_main_process():
                config = self.config
                model = self.state.model
                save(folder, model, config.model, config.solver, **self.sizes)

    def _start(self, resume: bool) -> None:
        config = self.config
        how: dict = {"seed": config.seed, "longest": self.most, "mesh": self.mesh}
        self.feed = Feed(self.dataset, config.batch_size, **how)
        self.state, self.totals = replicate((self.state, self._empty()), self.mesh)
        if resume:
            like = (self.state, self.totals)
            found = self.checkpoints.restore(like, self.origin)
            if found is not None:
                (self.state, self.totals), self.done = found

    def _epochs(self, log: Log | None, trace: "Trace", bar: tqdm) -> None:
        begin = time.perf_counter()
        with caught_signals() as caught:
            for epoch in range(self.done // self.per_epoch, self.config.epochs):
                epoch_begin, before = time.perf_counter(), self.done
                compiling = self._epoch(epoch, trace, bar, caught)
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
                self.totals = replicate(self._empty(), self.mesh)
                self._save(row["loss"])
                number = self._asked(caught)
                if number:
                    self._stop(number, bar)

    def _epoch(self, epoch, trace, bar, caught) -> float:
        """Takes the remaining steps of an epoch; returns the seconds of compilation."""
        end = (epoch + 1) * self.per_epoch
        compiling, running = 0.0, deque()
        alone = jax.process_count() == 1
        while self.done < end:
            count = trace.until(self._most_before(end))
            begin = time.perf_counter()
            self._dispatch(count)
            if not self._compiled:
                self._compiled, compiling = True, time.perf_counter() - begin
            bar.update(count)
            trace.steps(count, self.totals)
            running.append(self.totals)
            looking = self.done % LOOK < count
            if len(running) > AHEAD:
                # So that the reaction to a signal or a bad step is prompt.
                finished = jax.block_until_ready(running.popleft())
                if looking:
                    _show(bar, self._check(finished))
                    self.checkpoints.check()
            if self.done == end:
                break  # a signal waits for the epoch's row
            # Several processes communicate about it only now and then, since that makes
            # them wait.
            number = self._asked(caught) if looking or alone else 0
            if number:
                self._stop(number, bar)
            if self.every is not None and self.done % self.every == 0:
                self._check()
                self._save()
        return compiling

    def _most_before(self, end: int) -> int:
        """How many steps a dispatch may take before the epoch's end or a checkpoint."""
        limits = [self.most, end - self.done]
        if self.every is not None:
            limits.append(self.every - self.done % self.every)
        return min(limits)

    def _dispatch(self, count: int) -> None:
        """Starts `count` steps on the device."""
        number = replicate(jnp.asarray(count, jnp.int32), self.mesh)
        given = (self.feed(self.done, count), self.totals, number)
        self.state, self.totals = self.steps(given, self.state)
        self.done += count

    def _asked(self, caught: list[int]) -> int:
        """The number of the signal to stop, or 0; the same in every process."""
        return all_reduce_max(caught[0] if caught else 0)

    def _empty(self):
        return empty_metrics(self.config.loss)

    def _check(self, sums: RunningMetrics | None = None) -> dict:
        """Checks the totals, by default of all steps; returns its means."""
        found = jax.device_get(self.totals if sums is None else sums)
        steps = self.checkpoints.steps()
        last = str(self.checkpoints.path(steps[-1])) if steps else "none"
        check_metrics(found, self.config, self.total, last)
        return epoch_means(found, self.config.batch_size)

    def _save(self, loss: float | None = None) -> Path:
        epoch, batch = divmod(self.done, self.per_epoch)
        facts = {"step": self.done, "epoch": epoch, "batch": batch, **self.origin}
        return self.checkpoints.save(self.done, (self.state, self.totals), facts, loss)

    def _stop(self, number: int, bar: tqdm) -> None:
        self._check()
        path = self._save()
        self.checkpoints.close()
        name = signal.Signals(number).name
        if is_main_process():
            bar.write(f"{name}: checkpoint {path}; go on with --resume.")
        raise Interrupted(number)


def _sizes(config: TrainConfig, mesh: Mesh | None, share: int) -> str:
    """A text such as `batch of 128 = 2 devices x 4 in turn x 16 images`."""
    devices = 1 if mesh is None else mesh.size
    turns = f" x {config.accumulate} in turn" if config.accumulate > 1 else ""
    plural = "s" if devices > 1 else ""
    return f"batch of {config.batch_size} = {devices} device{plural}{turns} x {share}"


def _show(bar: tqdm, row: dict) -> None:
    bar.set_postfix_str(
        f"loss {row['loss']:.3f}, accuracy {row['accuracy']:.3f}, NFE {row['nfe']:.0f}"
    )
