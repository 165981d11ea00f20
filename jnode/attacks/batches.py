"""Some of the samples, in batches of one size."""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from jnode.sharding import shard_batch

Batch = tuple[Int[np.ndarray, " chosen"], jax.Array, jax.Array, Bool[np.ndarray, " n"]]


def gathered(
    images: Float[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, " n"],
    samples: Int[np.ndarray, " some"],
    length: int,
    mesh: Mesh | None = None,
) -> Iterator[Batch]:
    """Batches of (which samples, images, labels, mask), all `length` long.

    The last is filled up by repeating its samples, and `mask` is false at the fill, so
    that one compilation serves every batch. On a mesh they are spread over its devices.
    """
    for start in range(0, len(samples), length):
        chosen = samples[start : start + length]
        filled = np.resize(chosen, length)
        mask = np.arange(length) < len(chosen)
        x, y = shard_batch((images[filled], labels[filled]), mesh)
        yield chosen, x, y, mask
