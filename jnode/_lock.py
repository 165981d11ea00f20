"""Files that one process at a time can hold."""

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    def _take(file: BinaryIO) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore

else:

    def _take(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


HELD = (BlockingIOError, PermissionError)
"""What an operating system says of a lock that another holds (the second: Windows)."""


def acquire(path: str | os.PathLike, *, wait: bool = False) -> BinaryIO | None:
    """A lock of the operating system on a file, which is made where there is none.

    It ends when the returned file is closed, and with the process at the latest. It
    keeps out other processes, and other calls in this one. On a file system that knows
    no locks it warns and keeps out nobody.

    **Arguments:** the file, in a folder that exists; whether to wait until it is free.

    **Returns:** the open file, or `None` where another holds it.
    """
    file = open(path, "ab")  # noqa: SIM115 (the caller closes it)
    while True:
        try:
            _take(file)
        except HELD:
            if not wait:
                file.close()
                return None
            time.sleep(0.1)
        except OSError as error:
            warnings.warn(
                f"{Path(path).parent} cannot be locked ({error}): let no other process "
                "work in it.",
                stacklevel=2,
            )
            return file
        else:
            return file


@contextmanager
def claimed(path: str | os.PathLike, *, wait: bool) -> Iterator[bool]:
    """Whether the lock on this file (`acquire`) is held here, for a `with` block."""
    file = acquire(path, wait=wait)
    if file is None:
        yield False
        return
    with file:
        yield True
