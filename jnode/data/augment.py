"""Random flips and crops, inside jit."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, UInt8


def to_float(
    images: UInt8[Array, "batch height width channels"],
) -> Float[Array, "batch height width channels"]:
    """Bytes to pixels in [0, 1], the range of every model and attack."""
    return images.astype(jnp.float32) / 255


def augment(
    images: Float[Array, "batch height width channels"],
    key: PRNGKeyArray,
    *,
    flip: bool,
    pad: int,
) -> Float[Array, "batch height width channels"]:
    """Each image flipped left to right with probability 1/2, padded and cropped.

    **Arguments:** the images; a key; whether to flip; by how many pixels of zeros to
    pad before a random crop of the old size.
    """
    flip_key, crop_key = jr.split(key)
    if flip:
        chosen = jr.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
        images = jnp.where(chosen, images[:, :, ::-1], images)
    if pad:
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        corners = jr.randint(crop_key, (len(images), 2), 0, 2 * pad + 1)
        size = images.shape[1:]

        def crop(image, corner):
            return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), size)

        images = jax.vmap(crop)(padded, corners)
    return images
