"""What attacks take: images in [0, 1] and the true classes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

Classes = ArrayLike | Sequence[int]
"""The true class of each image, as an array or a list of integers."""


def as_input(
    images: ArrayLike, labels: Classes
) -> tuple[Float[Array, "batch height width channels"], Int[Array, " batch"]]:
    """Checked images and labels (`check_input`) as JAX's arrays."""
    images, labels = check_input(images, labels)
    return jnp.asarray(images), jnp.asarray(labels).astype(int)


def check_input(
    images: ArrayLike, labels: Classes
) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]:
    """Images and labels as arrays, NumPy's where they were no JAX arrays.

    **Arguments:**

    - `images`: [batch, height, width, channels], float32 or float64, with pixels in
        [0, 1]. The range is looked at where the pixels are known, so not in a function
        that JAX is tracing. The batch may be empty.
    - `labels`: [batch], integers.

    **Raises:** `TypeError` for another dtype; `ValueError` for another shape, pixels
    outside [0, 1], or images that are sharded over explicit mesh axes.
    """
    images, labels = _array(images), _array(labels)
    _check_dtype(images)
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(
            "images must have the shape [batch, height, width, channels], not "
            f"{tuple(images.shape)}: grey images have one channel, images[..., None]; "
            "a single image is a batch of one, images[None]."
        )
    if len(images) == 0 and labels.shape == (0,):
        labels = labels.astype(int)  # an empty list has no type of its own
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, not {labels.dtype}.")
    if labels.shape != (len(images),):
        raise ValueError(
            f"labels must be one class index for each image, of the shape "
            f"({len(images)},), not {tuple(labels.shape)}."
        )
    for array in (images, labels):
        _check_sharding(array)
    if len(images) and not isinstance(images, Tracer):
        # Images that are known may meet a function that JAX is tracing.
        with jax.ensure_compile_time_eval():
            low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"images must lie in [0, 1] and hold no NaN; these lie in {low:g} to "
                f"{high:g}. A normalisation belongs into the model."
            )
    return images, labels


def _check_dtype(images):
    if images.dtype in (np.float32, np.float64):
        return
    # In half precision the spacing of pixels near 1 is that of usual budgets.
    mend = (
        "cast them with images.astype('float32')"
        if jnp.issubdtype(images.dtype, jnp.floating)
        else "divide bytes by 255 (jnode.data.to_float)"
    )
    raise TypeError(
        f"images must be float32 or float64 in [0, 1], not {images.dtype}: {mend}."
    )


def _array(value):
    return value if isinstance(value, jax.Array) else np.asarray(value)


def _check_sharding(array):
    if not isinstance(array, jax.Array):
        return
    sharding = jax.typeof(array).sharding
    # An axis that no dimension is spread over is named by no part of the spec.
    names = {
        name
        for part in sharding.spec
        if part is not None
        for name in (part if isinstance(part, tuple) else (part,))
    }
    kinds = dict(zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True))
    if any(kinds[name] == AxisType.Explicit for name in names):
        raise ValueError(
            "images and labels must not be sharded over explicit mesh axes: make the "
            "mesh with Auto axes, as jnode.sharding.data_mesh does "
            "(jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,)))."
        )
