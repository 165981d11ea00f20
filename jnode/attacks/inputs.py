"""Checks of the arguments of attacks: images, labels and targets."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jnode._axes import as_auto
from jnode.attacks.goals import AbstractGoal, Targeted, Untargeted

Classes = ArrayLike | Sequence[int]
"""A class for each image, as an array or a list of integers."""
Known = jax.Array | np.ndarray


def as_input(
    images: ArrayLike, labels: Classes, targets: Classes | None = None
) -> tuple[Float[Array, "batch height width channels"], AbstractGoal]:
    """Checked images and the goal of their attack (`check_input`) as JAX's arrays."""
    images, labels, targets = check_input(images, labels, targets)
    if targets is None:
        return jnp.asarray(images), Untargeted(jnp.asarray(labels).astype(int))
    return jnp.asarray(images), Targeted(jnp.asarray(targets).astype(int))


def check_input(
    images: ArrayLike, labels: Classes, targets: Classes | None = None
) -> tuple[Known, Known, Known | None]:
    """All three, checked, as arrays: JAX arrays as they are, all else as NumPy arrays.

    **Arguments:**

    - `images`: [batch, height, width, channels], float32 or float64, with pixels in [0,
        1]. The range is checked only if the pixels are known, not in a function that
        JAX is tracing. The batch may be empty.
    - `labels`: [batch], integers.
    - `targets`: [batch], integers that differ from the label, which is checked
        likewise; or `None`.

    Arrays that are sharded over explicit mesh axes come back in Auto mode.

    **Raises:** `TypeError` for another dtype; `ValueError` for another shape, pixels
    outside [0, 1], a target that equals the label, or arrays that are sharded over
    explicit mesh axes in a function that JAX is tracing.
    """
    images = check_images(images)
    labels = _classes("labels", labels, len(images))
    if targets is not None:
        targets = _classes("targets", targets, len(images))
        if _known(labels, targets) and np.any(np.equal(labels, targets)):
            raise ValueError("targets must be other classes than the labels.")
    return images, labels, targets


def check_images(images: ArrayLike) -> Known:
    """As `check_input`, for the images only."""
    images = _array(images)
    _check_dtype(images)
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(
            "images must have the shape [batch, height, width, channels], not "
            f"{tuple(images.shape)}: grey images have one channel, images[..., None]; "
            "a single image is a batch of one, images[None]."
        )
    _check_sharding(images)
    if len(images) and _known(images):
        # Known images may be an argument of a function that JAX is tracing.
        with jax.ensure_compile_time_eval():
            low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"images must lie in [0, 1] and hold no NaN; these lie in {low:g} to "
                f"{high:g}. Put a normalisation into the model."
            )
    return images


def check_ranges(labels: Classes, targets: Classes | None, count: int) -> None:
    """Checks that the model has these classes, if their values are known.

    **Raises:** `ValueError` that names the argument.
    """
    for name, classes in (("labels", labels), ("targets", targets)):
        if classes is None or isinstance(classes, Tracer):
            continue
        values = np.asarray(classes)
        wrong = values[(values < 0) | (values >= count)]
        if wrong.size:
            raise ValueError(
                f"{name} must lie in 0..{count - 1}, the classes of the model, and one "
                f"is {int(wrong[0])}."
            )


def _classes(name, classes, n):
    classes = _array(classes)
    if n == 0 and classes.shape == (0,):
        classes = classes.astype(int)  # an empty list has no type of its own
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, not {classes.dtype}.")
    if classes.shape != (n,):
        raise ValueError(
            f"{name} must be one class index for each image, of the shape ({n},), not "
            f"{tuple(classes.shape)}."
        )
    _check_sharding(classes)
    return classes


def _known(*arrays):
    return not any(isinstance(array, Tracer) for array in arrays)


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
    return as_auto(value) if isinstance(value, jax.Array) else np.asarray(value)


def _check_sharding(array):
    if not isinstance(array, jax.Array):
        return
    sharding = jax.typeof(array).sharding
    # The spec names only mesh axes over which a dimension is sharded.
    names = {
        name
        for part in sharding.spec
        if part is not None
        for name in (part if isinstance(part, tuple) else (part,))
    }
    kinds = dict(zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True))
    if any(kinds[name] == AxisType.Explicit for name in names):
        raise ValueError(
            "images, labels and targets must not be sharded over explicit mesh axes "
            "in a function that JAX is tracing: call the attack outside of it, or make "
            "the mesh with Auto axes, as jnode.sharding.data_mesh does "
            "(jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,)))."
        )
