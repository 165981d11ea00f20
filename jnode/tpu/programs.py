"""The real programs, and the shapes of what they are given."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jnode.attacks import PGD
from jnode.models.batched import batched
from jnode.sharding import AXIS, Sharded
from jnode.train.config import TrainConfig
from jnode.train.state import init_state
from jnode.train.step import make_step


def _train(config: TrainConfig, shapes: "Shapes") -> tuple[Callable, tuple]:
    step = make_step(config, 1000, shapes.mesh)
    state, rebuild = shapes.whole(shapes.state(config))

    def program(state, images, labels):
        state, metrics = step((images, labels), rebuild(state))
        return eqx.filter(state, eqx.is_array), metrics

    return program, (state, shapes.images("uint8"), shapes.labels())


def _evaluate(config: TrainConfig, shapes: "Shapes") -> tuple[Callable, tuple]:
    model, rebuild = shapes.whole(shapes.baked(config))

    def program(model, images):
        return jnp.argmax(Sharded(batched(rebuild(model)), shapes.mesh)(images), axis=1)

    return program, (model, shapes.images("float32"))


def _attack(config: TrainConfig, shapes: "Shapes") -> tuple[Callable, tuple]:
    model, rebuild = shapes.whole(shapes.baked(config))
    attack = PGD(0.1, steps=1)

    def program(model, images, labels):
        spread = Sharded(batched(rebuild(model)), shapes.mesh)
        return attack(spread, images, labels, key=jax.random.key(0))

    return program, (model, shapes.images("float32"), shapes.labels())


PROGRAMS = {"train": _train, "evaluate": _evaluate, "attack": _attack}
"""By name: a training step, predictions, and PGD of one step."""


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Shapes of arrays, with their places on a mesh, of a batch of images."""

    mesh: Mesh
    image: tuple[int, int, int]
    batch: int

    def images(self, dtype: str) -> jax.ShapeDtypeStruct:
        return self._batch((self.batch, *self.image), dtype)

    def labels(self) -> jax.ShapeDtypeStruct:
        return self._batch((self.batch,), "int32")

    def _batch(self, shape, dtype):
        spread = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=spread)

    def whole(self, tree: Any) -> tuple[Any, Callable]:
        """The arrays of a tree of shapes, whole on each device; and how to go back."""
        place = NamedSharding(self.mesh, PartitionSpec())
        arrays, static = eqx.partition(tree, _is_shape)
        placed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arrays
        )
        return placed, lambda arrays: eqx.combine(arrays, static)

    def state(self, config: TrainConfig) -> Any:
        return eqx.filter_eval_shape(
            init_state, config, image_shape=self.image, classes=10, total_steps=1000
        )

    def baked(self, config: TrainConfig) -> Any:
        return eqx.filter_eval_shape(lambda m: m.bake(), self.state(config).model)


def _is_shape(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct)
