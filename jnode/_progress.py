"""The progress of a long loop: a bar on a terminal, a line a minute elsewhere."""

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

SECONDS = 60.0  # between two lines in a file


@contextmanager
def progress_bar(total: int, *, show: bool, **options: Any) -> Iterator[tqdm]:
    """A bar that moves where stderr is a terminal.

    Elsewhere, in a file or a CI's log, it writes a line at most once a minute, and one
    when the loop ends, however it ends.

    **Arguments:** how many rounds there are, whether to show them, and tqdm's options.
    """
    terminal = sys.stderr.isatty()
    file = sys.stderr if terminal else _Lines()
    with tqdm(total=total, disable=not show, file=file, **options) as bar:
        try:
            yield bar
        finally:
            if show and not terminal:
                print(str(bar).strip(), file=sys.stderr)


class _Lines(io.StringIO):
    """Takes what tqdm draws, and passes it on as a line of stderr once a minute."""

    def __init__(self):
        super().__init__()
        self.told = time.monotonic()

    def write(self, text: str) -> int:
        if text.strip() and time.monotonic() - self.told >= SECONDS:
            self.told = time.monotonic()
            print(text.strip(), file=sys.stderr, flush=True)
        return len(text)
