"""How training ends early: asked to by a signal, or each way with an exit code."""

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import equinox as eqx
import jax

_STORAGE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.EIO,
}


class Interrupted(SystemExit):
    """Training stopped by a signal after its checkpoint; exits with 128 + signal."""


class TrainingError(RuntimeError):
    """Training cannot go on."""

    exit_code = 3


class NonFiniteLossError(TrainingError):
    """The loss or a gradient ceased to be finite, or the loss exploded."""


class SolverFailedError(TrainingError):
    """Too many solves ended at `max_steps`."""


class OutOfMemoryError(TrainingError):
    """The device or the machine has too little memory."""


class StorageError(OSError):
    """The run folder could not be written."""

    exit_code = 4


@contextmanager
def explained(folder: Path, *, writing: bool = False) -> Iterator[None]:
    """Turns what the machine raises into errors that say what to do.

    **Arguments:** the run's folder; whether whatever fails inside fails at writing.

    **Raises:** `OutOfMemoryError`, `SolverFailedError`, `StorageError`; others pass.
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
                f"A solve failed beside the loss's own: {text.splitlines()[0]}"
            ) from error
        raise


def _reason(text: str) -> str:
    """What an operating system says, without the library's stack around it."""
    known = ("No space left on device", "Read-only file system", "File too large")
    for reason in known:
        if reason.lower() in text.lower():
            return reason
    return text.splitlines()[0][:200]


@contextmanager
def caught_signals() -> Iterator[list[int]]:
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
