"""Batches of one fixed size: drawn, turned to pixels, flipped and cropped."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray, UInt8

from jnode._batches import check_batch_size
from jnode.data.dataset import Dataset
from jnode.data.device import epoch_order


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    drop_last: bool = True,
) -> Iterator[
    tuple[UInt8[np.ndarray, "n height width channels"], Int32[np.ndarray, " n"]]
]:
    """Batches of (uint8 images, labels), in an order that depends on seed and epoch
    only.

    It is the order in which training takes them (`jnode.data.device.epoch_order`).

    **Arguments:**

    - `dataset`, `batch_size`: what to draw from, and how many images at a time.
    - `seed`, `epoch`: non-negative; different values give different orders.
    - `shuffle`: whether to shuffle at all.
    - `drop_last`: whether to drop the last batch if it is smaller; other epochs have
        other orders, so no image is lost. A smaller batch would recompile everything.

    **Raises:** `ValueError` at the call for sizes that give no batch.
    """
    check_batch_size(batch_size)
    n = len(dataset)
    if n == 0:
        raise ValueError("dataset must hold at least one image, not none.")
    if drop_last and batch_size > n:
        raise ValueError(
            f"batch_size must be at most the {n} images of the data set, not "
            f"{batch_size}, unless drop_last is False."
        )
    order = np.asarray(epoch_order(seed, epoch, n)) if shuffle else np.arange(n)
    stop = n - n % batch_size if drop_last else n
    indices = (order[i : min(i + batch_size, n)] for i in range(0, stop, batch_size))
    return ((dataset.images[chosen], dataset.labels[chosen]) for chosen in indices)


def to_float(
    images: UInt8[Array, "batch height width channels"]
    | UInt8[np.ndarray, "batch height width channels"],
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "batch height width channels"]:
    """Converts bytes to pixels in [0, 1], the range of every model and attack: x / 255.

    **Arguments:** the images, uint8; the floating dtype of the pixels, which is that of
    the model.

    **Raises:** `TypeError` for images that are not uint8, or a type that is not
    floating.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a floating type, not {jnp.dtype(dtype)}.")
    if images.dtype != jnp.uint8:
        raise TypeError(
            f"images must be uint8, not {images.dtype}: floats in [0, 1] need no "
            "conversion."
        )
    return jnp.asarray(images).astype(dtype) / 255


def augment(
    images: Float[Array, "batch height width channels"],
    key: PRNGKeyArray,
    *,
    flip: bool,
    pad: int,
) -> Float[Array, "batch height width channels"]:
    """Each image flipped left to right with probability 1/2, padded and cropped.

    Pixels are only moved or mirrored at the border, so they stay in [0, 1].

    **Arguments:**

    - `images`, `key`: the batch, and the key of the random flips and crops.
    - `flip`: whether to flip.
    - `pad`: by how many pixels, mirrored at the border, to pad each side before a
        random crop of the old size; 0 for none.

    **Raises:** `ValueError` for a `pad` that is negative or not smaller than the image.
    """
    if not 0 <= pad < min(images.shape[1:3]):
        raise ValueError(
            f"pad must be at least 0 and less than the image's sides, not {pad}."
        )
    flip_key, crop_key = jr.split(key)
    if flip:
        chosen = jr.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
        images = jnp.where(chosen, images[:, :, ::-1], images)
    if pad:
        sides = ((0, 0), (pad, pad), (pad, pad), (0, 0))
        padded = jnp.pad(images, sides, mode="reflect")
        corners = jr.randint(crop_key, (len(images), 2), 0, 2 * pad + 1)
        size = (images.shape[1], images.shape[2], images.shape[3])
        # A TPU cuts slices out one image after another, which took two thirds of a
        # whole training step. On CPU, slices take 0.6 ms for 128 CIFAR images where
        # selections take 17.
        images = jax.lax.platform_dependent(
            padded,
            corners,
            cpu=lambda padded, corners: _crop_by_slices(padded, corners, size),
            default=lambda padded, corners: crop_by_selection(padded, corners, size),
        )
    return images


def _crop_by_slices(padded, corners, size):
    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), size)

    return jax.vmap(crop)(padded, corners)


def crop_by_selection(
    padded: Float[Array, "batch high wide channels"],
    corners: Int[Array, "batch 2"],
    size: tuple[int, int, int],
) -> Float[Array, "batch height width channels"]:
    """Crops each image at its corner (row, column), by selecting among all shifts."""
    for axis in (0, 1):
        shifts = range(padded.shape[axis + 1] - size[axis] + 1)
        at = corners[:, axis, None, None, None]
        cut = [
            jax.lax.slice_in_dim(padded, k, k + size[axis], axis=axis + 1)
            for k in shifts
        ]
        padded = cut[0]
        for k in shifts[1:]:
            padded = jnp.where(at == k, cut[k], padded)
    return padded
