"""A profile of some training steps."""

from pathlib import Path
from typing import Any

import jax


class Trace:
    """A `jax.profiler` trace of some steps, for TensorBoard or Perfetto.

    **Arguments:** the folder; after how many steps of this start to begin; how many
    steps to trace, 0 for none.
    """

    def __init__(self, folder: Path, *, begin: int, steps: int):
        self.folder = folder
        self._edges = [begin, begin + steps] if steps else []
        self._seen, self._on = 0, False

    def until(self, count: int) -> int:
        """So many steps, or fewer where the trace begins or ends before."""
        return min([count, *(edge - self._seen for edge in self._edges)])

    def steps(self, count: int, result: Any) -> None:
        """Told of `count` steps, no more than `until` allows, with what they give."""
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
