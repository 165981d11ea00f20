"""The folder of a run: its contents, its metrics, and errors of writing to it."""

import dataclasses
import errno
import json
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from jnode._files import (
    Lines,
    as_path,
    check_links,
    lock_name,
    remove,
    write_atomic,
    write_json,
)
from jnode._process import own_version
from jnode.models.file import DESCRIPTION, WEIGHTS, from_dict
from jnode.train.config import TrainConfig

FORMAT = 3
"""The version of the run folder's format, the only one that can be read."""

CONTENTS = (
    # Training.
    "config.json",
    "metrics.jsonl",
    *(DESCRIPTION, WEIGHTS),  # the model file
    "checkpoints",
    "damaged",
    "tensorboard",
    "profile",
    # Evaluation and certificates.
    "evaluation",
    "evaluation.json",
    "pictures.npz",
    "certificate.json",
    "certificate.png",
    "certificate-linf.json",
    "certificate-rounding.json",
    "certificate-smoothed.json",
    # Reports and studies.
    "report.html",
    "report.md",
    "measured",
    "row.json",
    # Locks.
    lock_name("training"),
    lock_name("evaluation"),
)
"""Everything that the package writes into a run folder, files and folders."""

_LOCKS = tuple(name for name in CONTENTS if name.endswith(".lock"))
# Files that may be in a folder before its run: a study writes the row of a cell that
# failed too early to leave anything else.
_NO_RUN = (*_LOCKS, "row.json")


class RunDir:
    """The folder of a run.

    It holds `config.json`, `metrics.jsonl`, `checkpoints/`, the model file
    (`jnode.models.file`) once training has ended, and what else `CONTENTS` names.
    Nothing in it can lead a reader or writer out of it: it names no other folder, and
    links out of it raise an error.

    It lies on this machine, or in a bucket (`gs://bucket/run`).
    """

    def __init__(self, path: str | os.PathLike):
        self.path = as_path(path)

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def check_free(self, *, overwrite: bool) -> None:
        """Raises `FileExistsError` if `create` would."""
        if not self.path.is_dir():
            taken = self.path.exists()
        else:
            taken = any(self.unknown()) or any(
                (self.path / name).exists() for name in CONTENTS if name not in _NO_RUN
            )
        if not taken:
            return
        if not overwrite:
            raise FileExistsError(
                f"{self.path} exists already: continue it with --resume, replace "
                "it with --overwrite, or choose another folder."
            )
        if not (self.path / "config.json").is_file():
            raise FileExistsError(
                f"{self.path} is not a run folder, so --overwrite leaves it alone: "
                "choose another folder."
            )

    def create(self, *, overwrite: bool) -> None:
        """Creates the folder or, with `overwrite`, removes what a run left there.

        Files that the package did not write are never removed. A folder that holds only
        the row of a study's cell that failed before its run began counts as empty.

        **Raises:** `FileExistsError` if the folder is not empty and `overwrite` is off,
        or if it holds something that no run wrote.
        """
        self.check_free(overwrite=overwrite)
        self.check_links()
        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if not overwrite:
                return
            # The caller that overwrites holds the lock.
            names = [name for name in CONTENTS if name not in _LOCKS]
            for path in [self.path / name for name in names] + self._half_written():
                remove(path)

    def unknown(self) -> list[Path]:
        """The files in the folder that the package did not write."""
        known = {self.path / name for name in CONTENTS} | {*self._half_written()}
        return sorted(path for path in self.path.iterdir() if path not in known)

    def _half_written(self) -> list[Path]:
        """Temporary files that a killed process left."""
        return [
            path
            for path in self.path.glob(".*.tmp")
            if path.name[1:].rsplit(".", 2)[0] in CONTENTS
        ]

    def check_links(self) -> None:
        """Raises `ValueError` if a link leads out of the folder."""
        check_links(self.path, CONTENTS)

    def write_config(self, config: TrainConfig, **facts: Any) -> None:
        """Writes `config.json`: the configuration, and facts about data and machine.

        `data.dir` is left out, since it belongs to the machine, not to the run. The
        facts may include the `format` of another run from which this one derives; by
        default it is `FORMAT`.
        """
        train = dataclasses.asdict(without_paths(config))
        content = {"format": FORMAT, "train": train, **facts}
        with explained(self.path):
            write_json(self.path / "config.json", content)

    def read_config(self) -> tuple[TrainConfig, dict[str, Any]]:
        """The configuration, and the facts written with it, including `format`.

        A `data.dir` in it is ignored and read as `None`.

        **Raises:** `FileNotFoundError` for a folder that is not a run, `ValueError` for
        a damaged `config.json`, another format than `FORMAT`, or links that lead out of
        the folder.
        """
        self.check_links()
        path = self.path / "config.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.path} is not a run folder: it has no config.json. "
                "Train one with scripts/train.py."
            )
        try:
            facts = {"format": 1, **json.loads(path.read_text())}
            number = operator.index(facts["format"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if number != FORMAT:
            age, mend = (
                ("newer", "upgrade jnode")
                if number > FORMAT
                else ("earlier", "train it anew, or read it with that version")
            )
            raise ValueError(
                f"{self.path} was written by an {age} jnode, in format {number}, and "
                f"this version, {own_version()}, reads format {FORMAT}: {mend}."
            )
        try:
            config = without_paths(from_dict(TrainConfig, facts.pop("train")))
            facts["image_shape"] = tuple(facts["image_shape"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        return config, facts


def without_paths(config: TrainConfig) -> TrainConfig:
    """The configuration as a run folder stores it, without paths."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, dir=None))


class Log:
    """Writes one row of metrics for each epoch to `metrics.jsonl` and, if asked,
    TensorBoard.

    **Arguments:** the run's folder; the step from which the run resumes, as later rows
    are dropped; whether to write TensorBoard's files into `tensorboard/` too.

    **Raises:** `ImportError`, naming the extra, if TensorBoard's writer is missing.
    """

    def __init__(self, run_dir: Path, step: int, *, tensorboard: bool):
        self.run_dir = run_dir
        path = run_dir / "metrics.jsonl"
        with explained(run_dir, writing=True):
            _truncate(path, step)
            self._lines = Lines(path)
        self._board: Any = None
        if tensorboard:
            writer = tensorboard_writer()
            with explained(run_dir, writing=True):
                folder = str(run_dir / "tensorboard")
                self._board = writer(folder, purge_step=step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Writes a row through to the disk; it must hold `step`."""
        with explained(self.run_dir, writing=True):
            self._lines.add(json.dumps(row))
            if self._board is not None:
                for name, value in row.items():
                    if name not in ("step", "epoch"):
                        self._board.add_scalar(name, value, row["step"])
                self._board.flush()

    def close(self) -> None:
        with explained(self.run_dir, writing=True):
            self._lines.close()
            if self._board is not None:
                self._board.close()


def tensorboard_writer() -> Any:
    """The class that writes TensorBoard's files.

    **Raises:** `ImportError` naming the extra.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            'TensorBoard files need tensorboardX: pip install "jnode[tensorboard]".'
        ) from error
    return SummaryWriter


def _truncate(path: Path, step: int) -> None:
    """Drops the rows after a step, and an incomplete last row."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = []
    for line in lines:
        try:
            if not line.endswith("\n") or json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line)
    if kept != lines:
        write_atomic(path, lambda file: file.write("".join(kept).encode()))


_STORAGE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.EIO,
}


class TrainingError(RuntimeError):
    """Training cannot go on."""


class NonFiniteLossError(TrainingError):
    """The loss or a gradient is not finite, or the loss diverged."""


class SolverFailedError(TrainingError):
    """Too many solves ended at `max_steps`."""


class OutOfMemoryError(TrainingError):
    """The device or the machine has too little memory."""


class StorageError(OSError):
    """The run folder could not be written."""


@contextmanager
def explained(folder: Path, *, writing: bool = False) -> Iterator[None]:
    """Turns errors of the machine into errors that say what to do.

    **Arguments:** the run's folder; whether the block only writes files.

    **Raises:** `OutOfMemoryError`, `SolverFailedError`, `StorageError`; other errors as
    they are.
    """
    try:
        yield
    except (TrainingError, StorageError):
        raise
    except Exception as error:
        text = str(error) or type(error).__name__
        if isinstance(error, MemoryError) or (
            isinstance(error, jax.errors.JaxRuntimeError)
            and ("RESOURCE_EXHAUSTED" in text or "ut of memory" in text)
        ):
            raise OutOfMemoryError(
                f"Out of memory ({text.splitlines()[0]}): lower batch_size, raise "
                'accumulate, take solver.adjoint="checkpointed", or lower '
                "model.features; checkpoints stay as they are."
            ) from error
        if writing or (isinstance(error, OSError) and error.errno in _STORAGE):
            raise StorageError(
                f"{folder} cannot be written ({_reason(text)}). Whatever was written "
                "before is still there: mend the disk or its permissions, then go on "
                "with --resume."
            ) from error
        if isinstance(error, eqx.EquinoxRuntimeError):
            raise SolverFailedError(
                f"A solve failed outside of the loss: {text.splitlines()[0]}"
            ) from error
        raise


def _reason(text: str) -> str:
    """The operating system's message, without the library's stack around it."""
    known = ("No space left on device", "Read-only file system", "File too large")
    for reason in known:
        if reason.lower() in text.lower():
            return reason
    return text.splitlines()[0][:200]
