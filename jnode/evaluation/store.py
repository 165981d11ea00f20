"""The finished parts of an evaluation on disk, so that it can be resumed."""

import contextlib
import hashlib
import json
import os
import weakref
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from jnode._files import (
    FolderInUse,
    as_path,
    claimed,
    remove,
    write_atomic,
    write_json,
)
from jnode.attacks import Attacked, Trial
from jnode.sharding import all_reduce_max, barrier, is_main_process

LOCK = ".lock"
DAMAGED = (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


class Store:
    """The folder of an evaluation: `evaluation/` of a run.

    `arguments.json` records everything that determines the result: the model, the
    images, the attacks and so on. Each finished attack is one `.npz` file and each
    finished check one `.json` file, written atomically.

    Only one store at a time can open a folder; it holds a lock on the file `.lock`
    until the end of its `with` block, `close`, or the end of the process.

    Of several processes the first writes, and all read: they must open the store and
    call it together, and see the same folder.
    """

    def __init__(self, folder: str | os.PathLike, arguments: dict[str, Any]):
        """Opens the folder, and empties it if it holds another evaluation.

        `message` is one sentence about what was found there, or empty.

        **Raises:** `RuntimeError` if another store holds the folder.
        """
        self.folder = as_path(folder)
        self.message, self._release = "", lambda: None
        if is_main_process():
            self._claim(arguments)
        barrier("the evaluation's folder is there")

    def _claim(self, arguments: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            if not stack.enter_context(claimed(self.folder / LOCK, wait=False)):
                raise FolderInUse(
                    f"{self.folder} is in use by another evaluation, which would lose "
                    "what it has finished: wait until that has ended, or evaluate a "
                    "copy of the folder around it."
                )
            self.message = self._open(arguments)
            # A store that is never closed releases the folder when it is collected.
            self._release = weakref.finalize(self, stack.pop_all().close)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the folder. This store must not be used afterwards."""
        self._release()

    def _open(self, arguments: dict[str, Any]) -> str:
        # In the form in which JSON returns them.
        arguments = json.loads(json.dumps(arguments))
        path = self.folder / "arguments.json"
        message = ""
        if path.is_file():
            try:
                old = json.loads(path.read_text())
            except ValueError:
                old = {}
            if old == arguments:
                count = len([*self.folder.glob("attack-*.npz")])
                taken = f"{count} finished attacks are taken from {self.folder}."
                return taken if count else ""
            changed = [k for k in arguments if old.get(k) != arguments[k]]
            message = (
                f"Starting anew: {' and '.join(changed) or 'the format'} changed since "
                f"the evaluation in {self.folder}."
            )
            for part in self.folder.iterdir():
                if part.name != LOCK:
                    remove(part)
        write_json(path, arguments)
        return message

    def attack(self, index: int, make: Callable[[], Attacked]) -> Attacked:
        """The result of an attack: read from disk, or else made and written."""

        def write(path: Path, found: Attacked) -> None:
            arrays: dict[str, Any] = {k: np.asarray(v) for k, v in vars(found).items()}
            write_atomic(path, lambda file: np.savez_compressed(file, **arrays))

        return _kept(self.folder / f"attack-{index:03d}.npz", make, write, _read)

    def check(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a check: read from disk, or else made and written."""
        path = self.folder / f"check-{name}.json"
        return _kept(path, make, write_json, lambda path: json.loads(path.read_text()))


def _kept(path: Path, make, write, read) -> Any:
    """What a file holds; if need be after it was made and written."""
    # Looked for by one process for all: another might already see what is made now.
    if all_reduce_max(int(is_main_process() and path.is_file())):
        try:
            return read(path)
        except DAMAGED:
            pass  # made anew, by every process, since all read the same
    found = make()
    if is_main_process():
        write(path, found)
    barrier(f"{path.name} is there")
    return read(path)


def _read(path: Path) -> Attacked:
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        return Attacked(**dict(file))


def fingerprint(*parts: Any) -> str:
    """A hash of files (paths), arrays and plain values."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, os.PathLike):
            digest.update(as_path(part).read_bytes())
        elif isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def described(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Trials as plain data with all their settings, and a surrogate by its name."""

    def plain(value):
        if eqx.is_array(value):
            return np.asarray(jax.device_get(value)).tolist()
        return value if isinstance(value, int | float | str | None) else repr(value)

    return [
        {
            "class": type(trial.attack).__name__,
            "norm": trial.norm,
            "epsilon": trial.epsilon.tolist(),
            **{k: plain(v) for k, v in vars(trial.attack).items() if k != "source"},
        }
        for trial in trials
    ]
