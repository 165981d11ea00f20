"""Atomic writes of files, and locks that let one process write into a folder.

The operating system holds the locks and drops them when the process ends, however it
ends, so that nothing has to be cleared away after a crash.
"""

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes beside `path`, then moves: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        # A new file, so that no existing link at this name is followed.
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def check_links(folder: Path, names: Iterable[str]) -> None:
    """Raises `ValueError` where one of these in a folder is a link out of it."""
    root = folder.resolve()
    for name in names:
        target = (folder / name).resolve()
        if not target.is_relative_to(root):
            raise ValueError(
                f"{folder / name} is a link out of its folder, to {target}: remove "
                "it, or put the thing itself there."
            )


PAUSE = 0.2
"""Seconds between two attempts to get a lock, where the system cannot wait for it."""

# File systems without locks (some network mounts): the work goes on unguarded.
_WITHOUT_LOCKS = {
    errno.ENOLCK,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
}


class FolderInUse(RuntimeError):
    """Another process, or another thread of this one, writes into the folder."""


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Locks a folder for one `what` at a time while the block runs.

    **Arguments:** the folder, which is made if it is not there; what writes into it
    ("training", "evaluation"). Each has its own lock file, `lock_name(what)` in the
    folder, which remains when the block ends.

    **Raises:** `FolderInUse`, a `RuntimeError`, at once where another holds the lock;
    `OSError` where the folder cannot be written.
    """
    path.mkdir(parents=True, exist_ok=True)
    with claimed(path / lock_name(what), wait=False) as mine:
        if not mine:
            raise FolderInUse(
                f"{path} is in use: another {what} writes into it. Wait until it has "
                "ended, or choose another folder."
            )
        yield


def lock_name(what: str) -> str:
    """The name of the lock file of `locked`."""
    return f".{what}.lock"


@contextmanager
def claimed(path: Path, *, wait: bool) -> Iterator[bool]:
    """Whether the block alone holds the lock on a file, which is made if need be.

    **Arguments:** the file, which is neither read nor written; whether to wait until
    the lock is free, in which case the result is always true.

    On a file system without locks the result is true as well.
    """
    # A link there is not followed, since a run folder may be somebody else's.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    file = os.open(path, flags, 0o666)
    try:
        mine = _take(file)
        while wait and not mine:
            time.sleep(PAUSE)
            mine = _take(file)
        yield mine
    finally:
        os.close(file)  # and with it the lock


def _take(file: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            return True
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True
