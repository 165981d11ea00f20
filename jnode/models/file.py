"""The model file: a folder with `model.json`, the description of the model, and
`model.eqx`, its weights.

Reading runs no code from the folder and follows no path or link out of it: all names
are looked up in fixed lists, and NumPy reads the weights without pickle.
"""

import dataclasses
import hashlib
import io
import json
import operator
import os
import types
import typing
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jnode._files import as_path, check_links, size_of, write_atomic, write_json
from jnode._process import own_version
from jnode.models.classifier import ODEClassifier
from jnode.models.config import ModelConfig, build
from jnode.solvers import Solver

FORMAT = 1
"""The number of the format of `model.json`."""
DESCRIPTION, WEIGHTS = "model.json", "model.eqx"
_HEADER = 4096  # bytes that one array may need beside its numbers


@dataclasses.dataclass(frozen=True)
class _Description:
    """All arguments of `build` except the key, named as in `model.json`."""

    model: ModelConfig
    solver: Solver
    image_shape: tuple[int, int, int]
    classes: int


def save(
    folder: str | os.PathLike,
    model: ODEClassifier,
    config: ModelConfig,
    solver: Solver,
    *,
    image_shape: tuple[int, int, int],
    classes: int,
) -> None:
    """Writes a model, still constrained, as a folder that `load` reads.

    Each of the two files is written atomically. If the second one is missing, or from
    another save, `load` raises.

    **Arguments:** the folder, created if needed; the model; and the arguments of
    `jnode.build` that built it, though possibly another solver.

    **Raises:** `ValueError` if `config` does not describe the model.
    """
    folder = as_path(folder)
    described = _Description(config, solver, image_shape, classes)
    arrays = _arrays(model)
    difference = _difference(arrays, _arrays(_skeleton(described)))
    if difference:
        raise ValueError(
            f"model must be what config describes, still constrained: {difference}."
        )
    buffer = io.BytesIO()
    eqx.tree_serialise_leaves(buffer, model)
    raw = buffer.getvalue()
    check_links(folder, (DESCRIPTION, WEIGHTS))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / WEIGHTS, lambda file: file.write(raw))
    content = {
        "format": FORMAT,
        "jnode": own_version(),
        **dataclasses.asdict(described),
        "sha256": hashlib.sha256(raw).hexdigest(),
        "weights": {
            name: {"shape": list(x.shape), "dtype": str(x.dtype)}
            for name, x in arrays.items()
        },
    }
    write_json(folder / DESCRIPTION, content)


def load(folder: str | os.PathLike) -> ODEClassifier:
    """Loads a model that `save` wrote or a run trained, still constrained.

    It is ready for `jax.jit(jax.vmap(model))`, `jax.grad` and further training, and its
    certificates stay true when its weights change. `jnode.resolve` gives an equal model
    that is faster to call many times.

    Arrays keep the dtype in which they were written, except that float64 is rounded to
    float32 without `jax_enable_x64`.

    **Arguments:** a folder with `model.json` and `model.eqx`, such as a run folder once
    its training has ended.

    **Returns:** a model that maps one image in [0, 1] to logits. Loading runs no code
    from the folder.

    **Raises:** `FileNotFoundError` for a folder without a model; `ValueError` for a
    damaged model, a newer format, or links that lead out of the folder.
    """
    folder = as_path(folder)
    check_links(folder, (DESCRIPTION, WEIGHTS))
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            if folder.is_file():
                raise FileNotFoundError(f"{folder} is a file: name its folder.")
            raise FileNotFoundError(
                f"{folder} holds no model: it has no {name}. A run has one once its "
                "training has ended; scripts/train.py --resume goes on with it."
            )
    described, sha256, weights = _read_description(folder / DESCRIPTION)
    skeleton = _skeleton(described)
    difference = _difference(weights, _arrays(skeleton))
    if difference:
        raise ValueError(
            f"{folder / WEIGHTS} is of another architecture than its {DESCRIPTION} "
            f"describes: {difference}."
        )
    return _read_weights(folder / WEIGHTS, skeleton, sha256, weights)


def from_dict(cls: type, values: Any) -> Any:
    """The dataclass `cls` from the result of `dataclasses.asdict`, also after JSON.

    **Raises:** `ValueError` for names that the class does not have, missing ones, and
    values of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{cls.__name__} must be given by names, not as {values!r}.")
    hints = typing.get_type_hints(cls)
    unknown = set(values) - set(hints)
    if unknown:
        raise ValueError(
            f"{cls.__name__} has no {', '.join(sorted(unknown))}: the configuration "
            "comes from another version."
        )
    absent = dataclasses.MISSING
    for field in dataclasses.fields(cls):
        optional = field.default is not absent or field.default_factory is not absent
        if not optional and field.name not in values:
            raise ValueError(f"{cls.__name__} needs {field.name}, which is not there.")
    return cls(**{k: _restored(k, hints[k], v) for k, v in values.items()})


def _restored(name: str, hint: Any, value: Any) -> Any:
    """A value from JSON, converted to the type of its annotation."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    for kind in typing.get_args(hint) if union else (hint,):
        if isinstance(value, dict) and dataclasses.is_dataclass(kind):
            return from_dict(typing.cast(type, kind), value)
        if isinstance(value, list | tuple) and typing.get_origin(kind) is tuple:
            items = typing.get_args(kind)
            if items[1:] == (Ellipsis,):
                items = items[:1] * len(value)
            if len(items) == len(value):
                pairs = zip(items, value, strict=True)
                return tuple(_restored(name, item, x) for item, x in pairs)
        if type(value) is kind or (kind is float and type(value) is int):
            return value
    said = hint.__name__ if isinstance(hint, type) else str(hint)
    raise ValueError(f"{name} must be of the type {said}, not {value!r}.")


def _read_description(path: Path) -> tuple[_Description, str, dict[str, Any]]:
    """What the model is, the hash of its weights, and their shapes and types."""
    try:
        content = json.loads(path.read_text())
        number = operator.index(content["format"])
        if number > FORMAT:
            raise NotImplementedError
        names = [field.name for field in dataclasses.fields(_Description)]
        described = from_dict(_Description, {k: content[k] for k in names})
        weights = {
            name: jax.ShapeDtypeStruct(
                tuple(operator.index(n) for n in x["shape"]), _dtype(x["dtype"])
            )
            for name, x in content["weights"].items()
        }
        return described, str(content["sha256"]), weights
    except NotImplementedError:
        raise ValueError(
            f"{path} was written by a newer jnode, {content.get('jnode')}, in format "
            f"{number}, and this version, {own_version()}, reads formats up to "
            f"{FORMAT}: upgrade jnode."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _dtype(name: str) -> np.dtype:
    dtype = jnp.dtype(name)  # of bfloat16 too
    if dtype.kind not in "fiubV":
        raise ValueError(f"weights cannot be of the type {name}.")
    return dtype


def _skeleton(described: _Description) -> PyTree:
    """The model with shapes and types in place of arrays; nothing is computed."""
    return eqx.filter_eval_shape(
        lambda key: build(
            described.model,
            described.solver,
            image_shape=described.image_shape,
            classes=described.classes,
            key=key,
        ),
        jax.random.key(0),
    )


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _arrays(tree: PyTree) -> dict[str, Any]:
    """The arrays of a tree by their paths in it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path).lstrip("."): leaf
        for path, leaf in leaves
        if _is_array(leaf)
    }


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """A description of the first array that differs in more than precision, or ""."""
    for name in [*there, *here]:
        a, b = there.get(name), here.get(name)
        if a is None or b is None or a.shape != b.shape or _kind(a) != _kind(b):
            one, other = (
                "absent" if x is None else f"{x.dtype}{list(x.shape)}" for x in (a, b)
            )
            return f"{name} is {one} there and {other} here"
    return ""


def _kind(x: Any) -> Any:
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer, jnp.bool_)
    return next((kind for kind in kinds if jnp.issubdtype(x.dtype, kind)), x.dtype)


def _read_weights(
    path: Path, skeleton: PyTree, sha256: str, weights: dict[str, Any]
) -> ODEClassifier:
    numbers = sum(x.size * x.dtype.itemsize for x in weights.values())
    leaves, structure = jax.tree.flatten(skeleton)
    size = size_of(path)
    changed = "it is damaged, cut short or was changed"
    if not numbers <= size <= numbers + _HEADER * (len(leaves) + 1):
        raise ValueError(
            f"{path} is not the file that {DESCRIPTION} describes: it has {size:,} "
            f"bytes for {numbers:,} bytes of weights; {changed}."
        )
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise ValueError(
            f"{path} is not the file that {DESCRIPTION} describes, whose sha256 "
            f"differs: {changed}."
        )
    file = io.BytesIO(raw)
    types = iter(weights.values())
    try:
        leaves = [
            _read_array(file, next(types)) if _is_array(leaf) else _read(file, leaf)
            for leaf in leaves
        ]
        if file.read(1):
            raise ValueError("it holds more than that")
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as the weights that {DESCRIPTION} describes: "
            f"{error or type(error).__name__}."
        ) from error
    return jax.tree.unflatten(structure, leaves)


_read = eqx.default_deserialise_filter_spec


def _read_array(file: io.BytesIO, like: jax.ShapeDtypeStruct) -> jax.Array:
    stored = np.load(file, allow_pickle=False)
    if stored.dtype.kind == "V" and stored.dtype.itemsize == like.dtype.itemsize:
        stored = stored.view(like.dtype)  # bfloat16, which NumPy does not know
    if stored.shape != like.shape or stored.dtype != like.dtype:
        there, here = (f"{x.dtype}{list(x.shape)}" for x in (stored, like))
        raise ValueError(f"an array is {there} there and {here} here")
    return jnp.asarray(stored)
