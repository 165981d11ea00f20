"""Files that are either whole or absent, and models read back without pickle."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import equinox as eqx
from jaxtyping import PyTree


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes beside `path`, then moves: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        # New, so that no link laid there is followed.
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


def write_tree(path: Path, tree: PyTree) -> None:
    """Writes the leaves of a pytree, atomically."""
    write_atomic(path, lambda file: eqx.tree_serialise_leaves(file, tree))


def read_tree(path: Path, like: PyTree) -> PyTree:
    """Reads leaves that `write_tree` wrote into the structure `like`.

    **Raises:** `ValueError` where the file is damaged, cut short, or of another
    architecture.
    """
    try:
        with open(path, "rb") as file:
            tree = eqx.tree_deserialise_leaves(file, like)
            rest = file.read(1)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as the model that its config.json describes: it is "
            f"damaged, cut short or of another architecture ({type(error).__name__})."
        ) from error
    if rest:
        raise ValueError(
            f"{path} holds more than the model that its config.json describes: it is "
            "of another architecture."
        )
    return tree
