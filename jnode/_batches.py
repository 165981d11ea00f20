"""Images and labels that users bring: checked, and in batches of one size."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int, UInt8

from jnode.sharding import shard_batch

Batch = tuple[Int[np.ndarray, " chosen"], jax.Array, jax.Array, Bool[np.ndarray, " n"]]


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
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images must be floats in [0, 1], not {images.dtype}: "
            "convert bytes with jnode.data.to_float."
        )
    host = np.asarray(images)
    if np.isnan(host).any():
        raise ValueError("images must hold no NaN, and they do: clean the pixels.")
    low, high = float(host.min()), float(host.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"images must lie in [0, 1], and range from {low:g} to {high:g}: "
            "divide by 255, or leave normalisation to the model."
        )


def check_labels(labels, num_classes: int) -> None:
    """Checks labels: integers, [n], within [0, num_classes).

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


def _check_array(argument: str, value) -> None:
    if not isinstance(value, np.ndarray | jax.Array):
        raise TypeError(
            f"{argument} must be a NumPy or JAX array, not {type(value).__name__}."
        )


def padded_batches(
    images: Float[np.ndarray, "n height width channels"]
    | UInt8[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, " labels"],
    batch_size: int,
    *,
    multiple: int = 1,
) -> Iterator[tuple[np.ndarray, np.ndarray, Bool[np.ndarray, " batch"]]]:
    """Batches of (images, labels, mask) in order, all of one size.

    The last is filled up by repeating its samples, and `mask` is false at the fill,
    so that one compilation serves every batch. Fewer samples than `batch_size` make
    one batch of their own number, rounded up to a multiple of `multiple`.

    **Raises:** `ValueError` at the call for no samples, or labels of another number.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    n = len(labels)
    if len(images) != n:
        raise ValueError(
            f"images and labels must be as many, not {len(images)} and {n}."
        )
    if n == 0:
        raise ValueError("images must hold at least one image, not none.")
    size = min(batch_size, -(-n // multiple) * multiple)
    batches = _filled(np.arange(n), size)
    return ((images[filled], labels[filled], mask) for _, filled, mask in batches)


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
    for chosen, filled, mask in _filled(samples, length):
        x, y = shard_batch((images[filled], labels[filled]), mesh)
        yield chosen, x, y, mask


def _filled(samples, length):
    """So many samples at a time: which they are, the same filled up, and the mask."""
    for start in range(0, len(samples), length):
        chosen = samples[start : start + length]
        yield chosen, np.resize(chosen, length), np.arange(length) < len(chosen)
