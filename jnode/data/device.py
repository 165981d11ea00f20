"""The batches of a training run, selected on the devices that train."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Int32, UInt8

from jnode.data.dataset import Dataset
from jnode.sharding import local_rows, replicate, shard_batch, spread_rows

RESIDENT_BYTES = 2**30
"""Data sets of up to this size are copied to each device; larger ones are streamed."""

Batch = tuple[
    UInt8[Array, "batch height width channels"],
    Int32[Array, " batch"],
]
Batches = Callable[[Int[Array, ""]], Batch]
"""A PyTree that gives the batch of a step, counted from 0, also inside jit."""

# Keeps the order independent of the weights, which use the same seed.
_STREAM = 2**31


def epoch_order(seed: int, epoch: int, number: int) -> Int32[Array, " number"]:
    """The order in which an epoch takes `number` images: a random permutation.

    **Arguments:** seed and epoch, non-negative (different values give different
    orders); and the number of images.

    **Raises:** `ValueError` for a negative seed or epoch.
    """
    for argument, value in (("seed", seed), ("epoch", epoch)):
        if value < 0:
            raise ValueError(f"{argument} must be at least 0, not {value}.")
    return _permutation(jr.key(seed), jnp.asarray(epoch, jnp.uint32), number)


@partial(jax.jit, static_argnames="number")
def _permutation(key, epoch, number):
    key = jr.fold_in(jr.fold_in(key, _STREAM), epoch)
    return jr.permutation(key, jnp.arange(number, dtype=jnp.int32))


class Feed:
    """The batches of a training run, step by step, on the devices.

    Images of at most `RESIDENT_BYTES` are copied once to each device, and each device
    selects its rows of a batch there. Larger data sets are streamed: the images of a
    few steps at a time, and to each device only its own rows. The batches are the same
    either way.

    **Arguments:** the images; the batch size, at most their number; the seed of their
    order; the most steps whose batches are requested at a time; the devices over which
    each batch is sharded.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int,
        longest: int,
        mesh: Mesh | None = None,
    ):
        self.per_epoch = len(dataset) // batch_size
        self._dataset, self._batch_size, self._seed = dataset, batch_size, seed
        self._longest, self._mesh = longest, mesh
        self._order: tuple[int, Array] | None = None
        self._whole = None
        if dataset.images.nbytes <= RESIDENT_BYTES:
            arrays = jnp.asarray(dataset.images), jnp.asarray(dataset.labels)
            self._whole = replicate(arrays, mesh)

    def __call__(self, step: int, count: int) -> Batches:
        """The batches of `count` steps of one epoch, the first of them `step`."""
        epoch = step // self.per_epoch
        if self._order is None or self._order[0] != epoch:
            order = epoch_order(self._seed, epoch, len(self._dataset))
            self._order = epoch, replicate(order, self._mesh)
        first = epoch * self.per_epoch
        order = self._order[1]
        if self._whole is not None:
            start = self._scalar(first)
            size, mesh = self._batch_size, self._mesh
            images, labels = self._whole
            return Resident(images, labels, order, start, size, mesh)
        return self._streamed(np.asarray(order), step - first, count, step)

    def _streamed(self, order, position, count, step) -> "Streamed":
        size = self._batch_size
        # Padded with the last batch to a fixed number, so that one compilation serves
        # all.
        steps = np.minimum(np.arange(self._longest), count - 1) + position
        # The batch is the first axis, which is sharded over the devices.
        chosen = order[steps * size + local_rows(size, self._mesh)[:, None]]
        arrays = self._dataset.images[chosen], self._dataset.labels[chosen]
        images, labels = shard_batch(arrays, self._mesh)
        return Streamed(images, labels, self._scalar(step))

    def _scalar(self, value: int) -> Int32[Array, ""]:
        return replicate(jnp.asarray(value, jnp.int32), self._mesh)


class Resident(eqx.Module):
    """Batches of one epoch, from all images and their order.

    `first` is the epoch's first step.
    """

    images: UInt8[Array, "n height width channels"]
    labels: Int32[Array, " n"]
    order: Int32[Array, " n"]
    first: Int32[Array, ""]
    batch_size: int = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True)

    def __call__(self, step: Int[Array, ""]) -> Batch:
        start = (step - self.first) * self.batch_size
        rows = jax.lax.dynamic_slice_in_dim(self.order, start, self.batch_size)
        rows = spread_rows(rows, self.mesh)
        return self.images[rows], self.labels[rows]


class Streamed(eqx.Module):
    """Batches of a few steps, of which `first` is the first; the batch axis comes
    first."""

    images: UInt8[Array, "batch steps height width channels"]
    labels: Int32[Array, "batch steps"]
    first: Int32[Array, ""]

    def __call__(self, step: Int[Array, ""]) -> Batch:
        at = step - self.first
        pick = lambda x: jax.lax.dynamic_index_in_dim(x, at, axis=1, keepdims=False)  # noqa: E731
        return pick(self.images), pick(self.labels)
