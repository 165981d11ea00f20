"""Published checkpoints as plain arrays, and test images in their published order."""

import hashlib
from pathlib import Path

import numpy as np

from jnode import data


def arrays(path: Path, key: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a PyTorch checkpoint, by torch's `weights_only=True` loader.

    That loader executes no code of the file. Beyond tensors it is allowed NumPy's
    scalars, in which one of the contestants keeps an accuracy.

    **Arguments:** the file; the key of the state dictionary in it, if it is not the
    whole file.

    **Raises:** `FileNotFoundError` naming the repository's folder that is expected.
    """
    import torch

    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: FOLDER must hold checkouts named as in the list of "
            "contestants (python benchmarks/contest/run.py --help)."
        )
    scalar = np._core.multiarray.scalar
    allowed = [
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        np.dtypes.Float64DType,
    ]
    with torch.serialization.safe_globals(allowed):
        found = torch.load(path, weights_only=True, map_location="cpu")
    found = found if key is None else found[key]
    return {k.removeprefix("module."): v.numpy() for k, v in found.items()}


def kernel(weight: np.ndarray) -> np.ndarray:
    """A convolution's kernel [out, in, height, width] as [height, width, in, out]."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0))


def test_set(name: str, data_dir: str | None) -> data.Dataset:
    """The test images in the order of the data set's own files.

    TFDS stores them shuffled, but published figures are often those of the first
    thousand.
    """
    found = data.load(name, split="test", data_dir=data_dir)
    order = original_order(name, len(found), data_dir)
    return data.Dataset(
        name, "test", found.images[order], found.labels[order], found.num_classes
    )


def original_order(name: str, count: int, data_dir: str | None) -> np.ndarray:
    """The place in TFDS of each image of the original files.

    TFDS sorts by the hash of a key. Its key is the number for MNIST, and for CIFAR a
    name that is stored with the image.
    """
    if name == "mnist":
        hashed = [hashlib.md5(f"test{i}".encode()).hexdigest() for i in range(count)]
        order = np.empty(count, int)
        order[np.argsort(np.asarray(hashed))] = np.arange(count)
        return order
    import tensorflow_datasets as tfds

    from jnode.data.tfds import _data_dir, _prepared_folder

    folder = _prepared_folder(name, "test", _data_dir(data_dir))
    source = tfds.builder_from_directory(folder).as_data_source("test")
    return np.argsort(np.asarray([source[i]["id"] for i in range(count)]))
