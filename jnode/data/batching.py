"""Batches of one fixed size."""

from collections.abc import Iterator

import numpy as np

from jnode.data.dataset import Dataset


def batches(
    dataset: Dataset, batch_size: int, *, seed: int, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shuffled batches of (uint8 images, labels), their order given by seed and epoch.

    The ragged rest is dropped; the next epoch's order brings it back.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(dataset))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        yield dataset.images[chosen], dataset.labels[chosen]


def padded_batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of (images, labels, mask) in order; the last is filled by repetition.

    `mask` is false at the fill, so that one compilation serves every batch.
    """
    n = len(labels)
    batch_size = min(batch_size, n)
    for start in range(0, n, batch_size):
        index = np.arange(start, start + batch_size)
        yield images[index % n], labels[index % n], index < n
