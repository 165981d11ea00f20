"""Several processes, on one machine or many, as one."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

# Seconds until the others are missed: while starting, while running, while ending.
START, SILENCE, END = 300, 60, 30


@contextmanager
def connected(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """Joins this process to the others for the length of the block.

    If the block fails in one process, that process says why and ends at once, so that
    the others find their connections closed and end too, where they would else wait.

    **Arguments:** the address `host:port` of process 0, how many processes there are,
    and which of them this is; on TPU pods and under SLURM or Open MPI leave all out.

    **Raises:** `ValueError` where the processes cannot find each other.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=START,
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=END,
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the processes cannot find each other ({str(error).splitlines()[0]}): "
            "outside of TPU pods and SLURM give --coordinator HOST:PORT, "
            "--num-processes and --process-id to each."
        ) from error
    try:
        yield
    except SystemExit:
        # All of them stop together, at the same step.
        jax.distributed.shutdown()
        raise
    except BaseException as error:
        kind, text = type(error).__name__, str(error)
        print(
            f"error in process {jax.process_index()}: {kind}: {text}", file=sys.stderr
        )
        sys.stdout.flush()
        sys.stderr.flush()
        # Not by an exception: JAX would first wait for the others, and they for it.
        os._exit(getattr(error, "exit_code", 2 if isinstance(error, ValueError) else 1))
    else:
        jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def meet(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def largest(value: int) -> int:
    """The largest of all processes' values, the same in each."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.asarray(value))))
