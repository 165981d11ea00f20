"""Files that are either whole or absent, and models read back without pickle."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
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

    Arrays come in the types that the file holds them in, whatever those of `like`: a
    tree written without `jax_enable_x64` is read with it, unchanged. Without it JAX
    has no numbers of 64 bits, and those of the file are rounded to 32.

    **Raises:** `FileNotFoundError`; `ValueError` where the file is damaged, cut short,
    or of another architecture.
    """
    leaves, structure = jax.tree.flatten(like)
    with open(path, "rb") as file:
        try:
            leaves = [_read_leaf(file, leaf) for leaf in leaves]
        except _OtherArchitecture as error:
            raise ValueError(
                f"{path} is of another architecture than its config.json describes: "
                f"{error}."
            ) from error
        except Exception as error:
            raise ValueError(
                f"{path} cannot be read as the model that its config.json describes: "
                f"it is damaged or cut short ({type(error).__name__})."
            ) from error
        if file.read(1):
            raise ValueError(
                f"{path} holds more than the model that its config.json describes: it "
                "is of another architecture."
            )
    return jax.tree.unflatten(structure, leaves)


class _OtherArchitecture(ValueError):
    """An array is whole, and not the one that was asked for."""


def _read_leaf(file: BinaryIO, like: Any) -> Any:
    if not isinstance(like, jax.Array):
        return eqx.default_deserialise_filter_spec(file, like)
    stored = np.load(file, allow_pickle=False)
    if stored.dtype.kind == "V" and stored.dtype.itemsize == like.dtype.itemsize:
        stored = stored.view(like.dtype)  # bfloat16, which NumPy does not know
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer, jnp.bool_)
    alike = any(
        jnp.issubdtype(stored.dtype, kind) and jnp.issubdtype(like.dtype, kind)
        for kind in kinds
    )
    if stored.shape != like.shape or not alike:
        there, here = (f"{x.dtype}{list(x.shape)}" for x in (stored, like))
        raise _OtherArchitecture(f"an array is {there} there and {here} here")
    return jnp.asarray(stored)
