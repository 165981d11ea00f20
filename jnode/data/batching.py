"""Batches of one fixed size."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, Int32, UInt8

from jnode._batches import check_batch_size
from jnode.data.dataset import Dataset


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    drop_last: bool = True,
    rows: Int[np.ndarray, " rows"] | None = None,
) -> Iterator[
    tuple[UInt8[np.ndarray, "n height width channels"], Int32[np.ndarray, " n"]]
]:
    """Batches of (uint8 images, labels), their order given by seed and epoch alone.

    **Arguments:**

    - `dataset`, `batch_size`: what to draw from, and how many images at a time.
    - `seed`, `epoch`: non-negative; another of either gives another order.
    - `shuffle`: whether to shuffle at all.
    - `drop_last`: whether to drop the ragged rest; another epoch's order brings it
        back. A ragged batch would compile everything once more.
    - `rows`: which rows of each batch to load, by default all: a process's share.

    **Raises:** `ValueError` at the call for sizes that give no batch.
    """
    check_batch_size(batch_size)
    for argument, value in (("seed", seed), ("epoch", epoch)):
        if value < 0:
            raise ValueError(f"{argument} must be at least 0, not {value}.")
    n = len(dataset)
    if n == 0:
        raise ValueError("dataset must hold at least one image, not none.")
    if drop_last and batch_size > n:
        raise ValueError(
            f"batch_size must be at most the {n} images of the data set, not "
            f"{batch_size}, unless drop_last is False."
        )
    order = np.arange(n)
    if shuffle:
        order = np.random.default_rng((seed, epoch)).permutation(n)
    stop = n - n % batch_size if drop_last else n
    indices = (order[i : min(i + batch_size, n)] for i in range(0, stop, batch_size))
    if rows is not None:
        indices = (chosen[rows] for chosen in indices)
    return ((dataset.images[chosen], dataset.labels[chosen]) for chosen in indices)
