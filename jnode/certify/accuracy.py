"""Certified robust accuracy (CRA, also called verified robust accuracy, VRA)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from jnode._batches import check_images, check_labels, padded_batches
from jnode.certify.adaptive import is_certifiable
from jnode.certify.local import local_radius
from jnode.certify.precision import certifying, check_certifiable
from jnode.certify.radius import radii
from jnode.constraints import resolve
from jnode.sharding import (
    check_divides,
    replicate,
    shard_batch,
    sharded,
    shareable,
    split_rows,
)

if TYPE_CHECKING:
    from jnode.models import ODEClassifier

REFUSAL = (
    "{solver} chooses its steps from its input, so its map may jump where a step "
    "is accepted or rejected; certify the model with a fixed-step solver, or with "
    'controller="ladder", or on the steps that it takes for one image (--freeze), or '
    "smoothed (--smoothing 0.25)"
)
CURVE = 201  # radii in the curves for plots
LOCAL = 48
"""Images that a device certifies locally at a time."""
UNBOUNDED = "no Lipschitz constant is known of an unconstrained part of the model"


def refusal(model: "ODEClassifier") -> str | None:
    """The reason why a model cannot be certified, or `None` if it can."""
    if model.solver.ladder:
        return None if is_certifiable(model) else UNBOUNDED
    if model.solver.adaptive:
        return REFUSAL.format(solver=model.solver)
    if not np.isfinite(float(model.lipschitz())):
        return UNBOUNDED
    return None


def certified_radii(
    model: "ODEClassifier",
    images: ArrayLike,
    labels: ArrayLike,
    *,
    batch_size: int = 250,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, " n"]:
    """Each image's certified L2 radius, and -1 where the prediction is wrong.

    **Arguments:** a model; images [n, height, width, channels] with pixels in [0, 1];
    their classes [n]; the batch size over all devices; the devices over which to shard
    batches (`jnode.sharding.data_mesh`; by default JAX's first device). With several
    processes each computes its share of the images, and all get the whole result.

    **Raises:** `TypeError` and `ValueError` for bad images or labels, or a batch that
    cannot be divided evenly.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    check_images(images, shape=model.image_shape)
    check_labels(labels, len(model.head.bias), images)
    if images.dtype != np.float64:
        images = images.astype(np.float32)
    check_certifiable(model)
    each = check_divides(batch_size, mesh)

    def some(rows, mesh):
        mesh = _certifying_mesh(mesh)
        size = each * (1 if mesh is None else mesh.size)
        return _certified_radii(model, images[rows], labels[rows], size, mesh)

    return split_rows(some, len(labels), mesh)


def _certifying_mesh(mesh: Mesh | None) -> Mesh | None:
    """What is certified on a TPU is computed on the host's CPU."""
    return None if jax.default_backend() == "tpu" else mesh


@certifying
def _certified_radii(model, images, labels, batch_size, mesh):
    shared = replicate(resolve(model), mesh)
    size = min(batch_size, shareable(len(labels), mesh))
    parts = []
    for _, batch, mask in padded_batches((images, labels), size):
        some, theirs = shard_batch(batch, mesh)
        parts.append(np.asarray(_radii(shared, some, theirs, mesh))[mask])
    return np.concatenate(parts)


@eqx.filter_jit
def _radii(model, images, labels, mesh):
    def one_batch(model, images, labels):
        model, bounds = model
        predictions = jnp.argmax(jax.vmap(model)(images), axis=1)
        return jnp.where(predictions == labels, radii(model, bounds, images), -1.0)

    return sharded(one_batch, mesh)(model, images, labels)


def locally_certified_radii(
    model: "ODEClassifier",
    images: Float[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, " n"],
    *,
    progress: bool = False,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, " n"]:
    """As `certified_radii`, but by the local bounds of `local_radius`.

    **Arguments:** a model; images [n, height, width, channels] and their classes [n];
    whether to draw a progress bar; the devices over which to shard the images, 48 at a
    time on each.

    **Raises:** as `certified_radii`.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    check_images(images, shape=model.image_shape)
    check_labels(labels, len(model.head.bias), images)
    images = images.astype(np.float32)

    def some(rows, mesh):
        mesh = _certifying_mesh(mesh)
        return _locally_certified(model, images[rows], labels[rows], mesh, progress)

    return split_rows(some, len(labels), mesh)


@certifying
def _locally_certified(model, images, labels, mesh, progress):
    from jnode._progress import progress_bar

    total, shared = len(images), replicate(model, mesh)
    size = shareable(min(LOCAL * (1 if mesh is None else mesh.size), total), mesh)
    parts = []
    with progress_bar(total, show=progress, unit="image") as bar:
        bar.set_description("local certificates")
        for _, batch, mask in padded_batches((images, labels), size):
            x, y = shard_batch(batch, mesh)
            radii = _local_radii(shared, x, y, mesh)
            parts.append(np.asarray(radii)[mask])
            bar.update(len(parts[-1]))
    return np.concatenate(parts)


@eqx.filter_jit
def _local_radii(model, images, labels, mesh):
    def one_batch(model, images, labels):
        predictions = jnp.argmax(jax.vmap(model)(images), axis=1)
        return jnp.where(predictions == labels, local_radius(model, images), -1.0)

    return sharded(one_batch, mesh)(model, images, labels)


def certified_accuracy(
    radii: Float[np.ndarray, " n"], thresholds: Sequence[float]
) -> list[dict]:
    """Certified robust accuracy at each L2 radius, as rows for JSON: the share of
    correctly classified images with at least this certified radius.

    **Arguments:** the result of `certified_radii`, [n], and the radii to report, none
    of them negative.

    **Raises:** `ValueError` for a negative radius.
    """
    for threshold in thresholds:
        if not threshold >= 0:
            raise ValueError(f"radius must be at least 0, not {threshold!r}.")
    return [
        {
            "norm": "l2",
            "radius": float(threshold),
            "certified_accuracy": float(np.mean(radii >= threshold)),
        }
        for threshold in thresholds
    ]


def linf_certified_accuracy(
    radii: Float[np.ndarray, " n"], thresholds: Sequence[float], *, pixels: int
) -> list[dict]:
    """As `certified_accuracy`, for Linf balls, by the L2 balls that contain them.

    **Arguments:** L2 radii, [n]; the Linf radii to report; the number of pixels of an
    image.
    """
    # Slightly larger, so that rounding never certifies more.
    factor = pixels**0.5 * (1 + 1e-6)
    return [
        {
            "norm": "linf",
            "radius": float(r),
            "certified_accuracy": float(np.mean(radii >= r * factor)),
        }
        for r in thresholds
    ]


def curve(
    proven: Float[np.ndarray, " n"], local: Float[np.ndarray, " n"], *, up_to: float
) -> dict[str, list[float]]:
    """Certified accuracy against the radius, for plots, up to `up_to` or further.

    **Arguments:** the results of `certified_radii` and `locally_certified_radii`.
    """
    reach = max(up_to, float(np.quantile(local, 0.99)), 1e-3)
    radii = np.linspace(0, 1.05 * reach, CURVE)
    share = lambda found: [float(np.mean(found >= r)) for r in radii]  # noqa: E731
    return {
        "radius": [float(r) for r in radii],
        "certified_accuracy": share(proven),
        "certified_locally": share(local),
    }
