"""Atomic writes of files, and locks that let one process write into a folder.

The operating system holds the locks and drops them when the process ends, however it
ends, so that nothing has to be cleared away after a crash.

A folder may also lie in a bucket of Google Cloud Storage (`gs://bucket/run`), by way of
`etils.epath`, which gives paths there the methods of `pathlib`. There an object appears
when it is whole, links do not exist, and nothing can be locked or appended to.
"""

import errno
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast


def as_path(path: str | os.PathLike) -> Path:
    """A path on this machine, or in a bucket where it begins with `gs://`.

    **Raises:** `ValueError` for another scheme; `ImportError` naming the extra where
    buckets cannot be reached.
    """
    scheme, separator, _ = os.fspath(path).partition("://")
    if not separator:
        return Path(path)
    if scheme != "gs":
        raise ValueError(
            f"{os.fspath(path)} must be a folder on this machine or begin with gs://, "
            "a bucket of Google Cloud Storage."
        )
    from etils import epath

    found = epath.Path(path)
    try:
        found.exists()
    except ImportError as error:
        raise ImportError(
            f'{os.fspath(path)} needs gcsfs: pip install "jnode[gs]".'
        ) from error
    return cast(Path, found)


def in_bucket(path: Path) -> bool:
    """Whether a path of `as_path` lies in a bucket and not on this machine."""
    return not isinstance(path, Path)


def absolute(path: Path) -> Path:
    """The path from the root, links followed."""
    return path if in_bucket(path) else path.resolve()


def remove(path: Path) -> None:
    """Removes a file, a link or a whole folder, if it is there."""
    if in_bucket(path) and path.is_dir():
        cast(Any, path).rmtree()
    elif not in_bucket(path) and path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def move(path: Path, target: Path) -> None:
    """Moves a folder to where nothing is."""
    if not in_bucket(path):
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
        return
    _copy(path, target)
    remove(path)


def _copy(path: Path, target: Path) -> None:
    if path.is_dir():
        for part in path.iterdir():
            _copy(part, target / part.name)
    else:
        target.write_bytes(path.read_bytes())


def size_of(path: Path) -> int:
    """How many bytes a file has."""
    found: Any = path.stat()
    return found.length if in_bucket(path) else found.st_size


class Lines:
    """A text file that grows: a line is on the disk when `add` returns.

    In a bucket, where nothing can be appended to, all of it is written anew.
    """

    def __init__(self, path: Path):
        self._path, self._text, self._file = path, "", None
        if not in_bucket(path):
            self._file = open(path, "a")  # noqa: SIM115
        elif path.exists():
            self._text = path.read_text()

    def add(self, line: str) -> None:
        """Writes a line, which is given without its end."""
        if self._file is None:
            self._text += line + "\n"
            self._path.write_text(self._text)
            return
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes beside `path`, then moves: a reader never sees half a file.

    In a bucket an object is whole or absent by itself.
    """
    if in_bucket(path):
        buffer = io.BytesIO()
        write(buffer)
        path.write_bytes(buffer.getvalue())
        return
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
    if in_bucket(folder):
        return
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
    folder, which remains when the block ends. A bucket has no locks.

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

    On a file system without locks, such as a bucket, the result is true as well.
    """
    if in_bucket(path):
        yield True
        return
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
