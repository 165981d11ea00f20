"""Some of the samples, in batches of one size."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

Batch = tuple[Int[np.ndarray, " chosen"], jax.Array, jax.Array, Bool[np.ndarray, " n"]]


def gathered(
    images: Float[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, " n"],
    samples: Int[np.ndarray, " some"],
    length: int,
) -> Iterator[Batch]:
    """Batches of (which samples, images, labels, mask), all `length` long.

    The last is filled up by repeating its samples, and `mask` is false at the fill, so
    that one compilation serves every batch.
    """
    for start in range(0, len(samples), length):
        chosen = samples[start : start + length]
        filled = np.resize(chosen, length)
        mask = np.arange(length) < len(chosen)
        yield chosen, jnp.asarray(images[filled]), jnp.asarray(labels[filled]), mask
