"""Checks of users' images and labels, and batches of one size."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, Shaped

Batch = tuple[
    Int[np.ndarray, " chosen"], tuple[np.ndarray, ...], Bool[np.ndarray, " size"]
]


def check_images(images, *, shape: tuple[int, int, int] | None = None) -> None:
    """Checks a batch of images: float, [n, height, width, channels], within [0, 1].

    **Raises:** `TypeError` for another dtype, `ValueError` for another shape, for NaN
    and for pixels out of range.
    """
    _check_array("images", images)
    if images.ndim != 4:
        raise ValueError(
            "images must have the shape [n, height, width, channels], "
            f"not {tuple(images.shape)}."
        )
    if len(images) == 0:
        raise ValueError("images must hold at least one image, not none.")
    if shape is not None and tuple(images.shape[1:]) != tuple(shape):
        raise ValueError(
            f"images must each have the shape {tuple(shape)} (height, width, "
            f"channels), not {tuple(images.shape[1:])}."
        )
    check_pixels(images)
    host = np.asarray(images)
    if np.isnan(host).any():
        raise ValueError("images must hold no NaN, and they do: clean the pixels.")
    low, high = float(host.min()), float(host.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"images must lie in [0, 1], and range from {low:g} to {high:g}: "
            "divide by 255, or leave normalisation to the model."
        )


def check_pixels(images) -> None:
    """Raises `TypeError` for pixels that are not floating-point numbers."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images must be floats in [0, 1], not {images.dtype}: "
            "convert bytes with jnode.data.to_float."
        )


def check_labels(labels, num_classes: int, images=None) -> None:
    """Checks labels: integers, [n], within [0, num_classes), one for each image.

    **Raises:** `TypeError` for another dtype, `ValueError` for another shape or range.
    """
    _check_array("labels", labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, not {labels.dtype}.")
    if labels.ndim != 1:
        raise ValueError(f"labels must have the shape [n], not {tuple(labels.shape)}.")
    host = np.asarray(labels)
    bad = host[(host < 0) | (host >= num_classes)]
    if bad.size:
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1}, and one is {int(bad[0])}."
        )
    if images is not None:
        check_as_many(images, labels)


def check_as_many(images, labels) -> None:
    """Raises `ValueError` unless there is one label for each image."""
    if len(images) != len(labels):
        raise ValueError(
            f"images and labels must be as many, not {len(images)} and {len(labels)}."
        )


def _check_array(argument: str, value) -> None:
    if not isinstance(value, np.ndarray | jax.Array):
        raise TypeError(
            f"{argument} must be a NumPy or JAX array, not {type(value).__name__}."
        )


def check_batch_size(batch_size: int) -> None:
    """Raises `ValueError` for a batch of no images."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")


def padded_batches(
    arrays: Sequence[Shaped[np.ndarray, "n ..."]],
    size: int,
    *,
    samples: Int[np.ndarray, " chosen"] | None = None,
) -> Iterator[Batch]:
    """Batches of (which samples, arrays, mask) in order, all `size` long.

    The last batch is padded by repeating its samples, and `mask` is false at the
    padding, so that one compilation serves every batch.

    **Arguments:** arrays of shape `[n, ...]` with one row for each sample, such as
    images and labels; the batch size, at least 1; the indices of the samples, by
    default all.

    **Raises:** `ValueError` at the call for arrays of no samples or of unequal numbers.
    """
    check_batch_size(size)
    n = len(arrays[0])
    for other in arrays[1:]:
        check_as_many(arrays[0], other)
    if n == 0:
        raise ValueError("images must hold at least one image, not none.")
    return _filled(arrays, size, np.arange(n) if samples is None else samples)


def _filled(arrays, size, samples):
    for start in range(0, len(samples), size):
        chosen = samples[start : start + size]
        filled = np.resize(chosen, size)
        mask = np.arange(size) < len(chosen)
        yield chosen, tuple(array[filled] for array in arrays), mask
