"""Profiling some training steps."""

from pathlib import Path
from typing import Any

import jax


class Trace:
    """A `jax.profiler` trace of some steps, for TensorBoard or Perfetto.

    **Arguments:** the folder; the number of steps after which to begin; how many steps
    to trace, 0 for none.
    """

    def __init__(self, folder: Path, *, begin: int, steps: int):
        self.folder = folder
        self._edges = [begin, begin + steps] if steps else []
        self._seen, self._on = 0, False

    def until(self, count: int) -> int:
        """`count`, or fewer steps if the trace begins or ends before that."""
        return min([count, *(edge - self._seen for edge in self._edges)])

    def steps(self, count: int, result: Any) -> None:
        """Records that `count` steps were dispatched, at most `until`, with their
        result."""
        self._seen += count
        if self._edges and self._seen == self._edges[0]:
            jax.block_until_ready(result)
            self._edges.pop(0)
            if self._on:
                self.close()
            else:
                jax.profiler.start_trace(self.folder)
                self._on = True

    def close(self) -> None:
        if self._on:
            self._on = False
            jax.profiler.stop_trace()
