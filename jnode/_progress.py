"""The progress of a long loop: a bar on a terminal, one line elsewhere."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


@contextmanager
def progress_bar(total: int, *, show: bool, **options: Any) -> Iterator[tqdm]:
    """A bar that moves where stderr is a terminal.

    Elsewhere, in a file or a CI's log, it writes one line when the loop ends, however
    it ends.

    **Arguments:** how many rounds there are, whether to show them, and tqdm's options.
    """
    terminal = sys.stderr.isatty()
    file = sys.stderr if terminal else io.StringIO()
    with tqdm(total=total, disable=not show, file=file, **options) as bar:
        try:
            yield bar
        finally:
            if show and not terminal:
                print(str(bar).strip(), file=sys.stderr)
