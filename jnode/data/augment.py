"""Bytes to pixels, and random flips and crops; all fit for jit."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8


def to_float(
    images: UInt8[Array, "batch height width channels"]
    | UInt8[np.ndarray, "batch height width channels"],
) -> Float[Array, "batch height width channels"]:
    """Bytes to pixels in [0, 1], the range of every model and attack: x / 255.

    **Raises:** `TypeError` for images that are not uint8.
    """
    if images.dtype != jnp.uint8:
        raise TypeError(
            f"images must be uint8, not {images.dtype}: floats in [0, 1] need no "
            "conversion."
        )
    return jnp.asarray(images).astype(jnp.float32) / 255


def augment(
    images: Float[Array, "batch height width channels"],
    key: PRNGKeyArray,
    *,
    flip: bool,
    pad: int,
) -> Float[Array, "batch height width channels"]:
    """Each image flipped left to right with probability 1/2, padded and cropped.

    Pixels are only moved, or lost to zeros at the border, so they stay in [0, 1].

    **Arguments:**

    - `images`, `key`: the batch, and what decides the fate of each image in it.
    - `flip`: whether to flip.
    - `pad`: by how many pixels of zeros to pad each side before a random crop of the
        old size; 0 for none.

    **Raises:** `ValueError` for a negative `pad`.
    """
    if pad < 0:
        raise ValueError(f"pad must be at least 0, not {pad}.")
    flip_key, crop_key = jr.split(key)
    if flip:
        chosen = jr.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
        images = jnp.where(chosen, images[:, :, ::-1], images)
    if pad:
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        corners = jr.randint(crop_key, (len(images), 2), 0, 2 * pad + 1)
        size = images.shape[1:]

        # 0.6 ms for 128 CIFAR images on CPU, where a sum of shifted slices takes 17.
        def crop(image, corner):
            return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), size)

        images = jax.vmap(crop)(padded, corners)
    return images
