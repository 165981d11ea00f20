"""What a run tells while it trains: `metrics.jsonl`, TensorBoard, traces."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import jax

from jnode._files import write_atomic
from jnode.train.errors import explained


class Log:
    """Rows of metrics, one an epoch, in `metrics.jsonl` and perhaps TensorBoard.

    **Arguments:** the run's folder; the step that is gone on from, later rows being
    dropped; whether to write TensorBoard's files into `tensorboard/` too.

    **Raises:** `ImportError` naming the extra where TensorBoard's writer is missing.
    """

    def __init__(self, run_dir: Path, step: int, *, tensorboard: bool):
        self.run_dir = run_dir
        path = run_dir / "metrics.jsonl"
        with explained(run_dir, writing=True):
            _truncate(path, step)
            self._file = open(path, "a")  # noqa: SIM115
        self._board: Any = None
        if tensorboard:
            writer = tensorboard_writer()
            with explained(run_dir, writing=True):
                folder = str(run_dir / "tensorboard")
                self._board = writer(folder, purge_step=step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Writes a row through to the disk; it must hold `step`."""
        with explained(self.run_dir, writing=True):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            if self._board is not None:
                for name, value in row.items():
                    if name not in ("step", "epoch"):
                        self._board.add_scalar(name, value, row["step"])
                self._board.flush()

    def close(self) -> None:
        with explained(self.run_dir, writing=True):
            self._file.close()
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


def peak_memory() -> dict[str, int]:
    """The most bytes in use so far: of the first device where it counts them
    (`peak_device_bytes`), else of this process (`peak_process_bytes`); empty where
    the operating system does not count them either (Windows)."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return {"peak_device_bytes": int(stats["peak_bytes_in_use"])}
    try:
        import resource
    except ImportError:  # not on Unix
        return {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In bytes on macOS, in KiB elsewhere.
    return {"peak_process_bytes": peak if sys.platform == "darwin" else 1024 * peak}


class Trace:
    """A `jax.profiler` trace of some steps, for TensorBoard or Perfetto.

    **Arguments:** the folder; after how many steps of this start to begin; how many
    steps to trace, 0 for none.
    """

    def __init__(self, folder: Path, *, begin: int, steps: int):
        self.folder = folder
        self._begin, self._end = begin, begin + steps
        self._seen, self._on = 0, False

    def step(self, result: Any) -> None:
        """Told of each step, with what it gives."""
        self._seen += 1
        if self._on and self._seen == self._end:
            jax.block_until_ready(result)
            self.close()
        elif self._seen == self._begin and self._end > self._begin:
            jax.block_until_ready(result)
            jax.profiler.start_trace(self.folder)
            self._on = True

    def close(self) -> None:
        if self._on:
            self._on = False
            jax.profiler.stop_trace()


def _truncate(path: Path, step: int) -> None:
    """Drops rows past a step, and half a row."""
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
