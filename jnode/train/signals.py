"""Signals that ask training to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


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
