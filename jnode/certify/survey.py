"""Figures for judging the certificate of an adaptive model."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jnode._batches import padded_batches
from jnode.certify.accuracy import certified_accuracy, certified_radii
from jnode.certify.adaptive import adaptive_radii
from jnode.certify.precision import certifying, is_block
from jnode.constraints import plain, resolve
from jnode.solvers import solve

if TYPE_CHECKING:
    from jnode.models import ODEClassifier

BATCH = 100
NAME_ONLY = "all images take one path: the solver is adaptive in name only"


def survey(
    model: "ODEClassifier",
    images: Float[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, " n"],
    radii: Sequence[float],
    timed: int,
) -> dict[str, Any] | None:
    """How adaptive a model with a ladder is, and what its certificate costs.

    **Arguments:** the model; images and their classes; L2 radii; and the number of
    images that are certified once more, to count and time the attempts.

    **Returns:** `paths`, the number of different grids that the images take, with the
    share of images on the most common one (`commonest_share`) and a `flag` if there is
    only one; `attempts` at steps for an image, their mean, and `attempts_largest`;
    `milliseconds` for one image; and `frozen`, the certified accuracy if all images
    take the most common grid. `None` for a model whose steps are fixed.
    """
    if not model.solver.adaptive:
        return None
    grids = taken(model, images)
    kinds, first, counts = np.unique(
        grids, axis=0, return_index=True, return_counts=True
    )
    commonest = int(np.argmax(counts))
    frozen = model.freeze(jnp.asarray(images[first[commonest]]))
    fixed = certified_radii(frozen, images, labels)
    attempts, seconds = _timed(model, images[:timed])
    return {
        "paths": len(kinds),
        "commonest_share": float(counts[commonest] / len(images)),
        "commonest_grid": frozen.solver.grid,
        "attempts": float(np.mean(attempts)),
        "attempts_largest": int(np.max(attempts)),
        "milliseconds": 1e3 * seconds / len(attempts),
        "frozen": certified_accuracy(fixed, radii),
        "flag": NAME_ONLY if len(kinds) == 1 else None,
    }


def taken(
    model: "ODEClassifier", images: Float[np.ndarray, "n height width channels"]
) -> Float[np.ndarray, "n ends"]:
    """The ends of each image's steps, block after block, padded with -1."""
    model, parts = plain(model), []
    for _, (some,), mask in padded_batches((images,), min(BATCH, len(images))):
        parts.append(np.asarray(_taken(model, jnp.asarray(some)))[mask])
    return np.concatenate(parts)


@eqx.filter_jit
def _taken(model, images) -> Float[Array, "n ends"]:
    def one(y):
        ends = []
        for layer in model.layers:
            if is_block(layer, model):
                field, solver = layer.field, layer.solver
                found = solve(field, y, solver, t0=layer.t0, t1=layer.t1)
                assert found.ends is not None, "an adaptive solver's are kept"
                ends.append(jnp.where(jnp.isfinite(found.ends), found.ends, -1))
                y = found.y
            else:
                y = layer(y)
        return jnp.concatenate(ends)

    return jax.vmap(one)(images)


@certifying
def _timed(model, images) -> tuple[Int[np.ndarray, " n"], float]:
    shared, attempts, size = resolve(model), [], min(BATCH, len(images))
    _attempts(shared, jnp.asarray(images[:size])).block_until_ready()  # compiles
    start = time.perf_counter()
    for _, (some,), mask in padded_batches((images,), size):
        attempts.append(np.asarray(_attempts(shared, jnp.asarray(some)))[mask])
    return np.concatenate(attempts), time.perf_counter() - start


@eqx.filter_jit
def _attempts(shared, images) -> Int[Array, " n"]:
    model, bounds = shared
    return adaptive_radii(model, bounds, images).attempts
