"""TPUs and GPUs that are not there: what the real programs would cost on them.

Kinds of TPU (those of GPU are in `cuda.py`), the programs with the shapes of what they
are given, and what the compiler says of each program when it is compiled ahead of time.
"""

import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import cuda
import equinox as eqx
import jax
import jax.numpy as jnp
from hlo_cost import Work, collectives, cycles, work
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jnode.attacks import PGD, Budget
from jnode.data.device import Resident
from jnode.models.batched import batched
from jnode.sharding import AXIS, Sharded, data_mesh
from jnode.train import TrainConfig, get_preset
from jnode.train.step import empty_metrics, init_state, make_step, make_steps

# Turns of loops whose length is not known beforehand: the Cayley transform's inverse
# takes at most 11, a dispatch is counted as one of 11 training steps (how many it takes
# is data), and an attack is compiled for one step.
TURNS = {"train": 11, "dispatch": 11, "evaluate": 1, "attack": 1}
CIFAR = (32, 32, 3)
MNIST = (28, 28, 1)
IMAGES = 50_000  # on each device, of which a dispatch takes its batches


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip, from public specifications (cloud.google.com/tpu/docs).

    - `topologies`: by the number of chips, the compiler's name for so many.
    - `peak`: FLOP/s of its matrix units in bfloat16.
    - `clock`: cycles a second; `peak` over the products that its units do in a cycle.
    - `memory`: bytes; `bandwidth`: bytes a second from it.
    - `ici`: bytes a second that a chip sends to its neighbours, all links together.
    - `options`: of the compiler's description; both cores of a v4 chip are one device
        ("megacore"), as JAX runs it.
    """

    topologies: dict[int, str]
    peak: float
    clock: float
    memory: float
    bandwidth: float
    ici: float
    options: dict[str, str] = dataclasses.field(default_factory=dict)


CHIPS = {
    "v4": Chip(
        {1: "v4:1x1x1", 4: "v4:2x2x1", 16: "v4:2x2x4"},
        peak=275e12,
        clock=1.05e9,
        memory=32e9,
        bandwidth=1228e9,
        ici=300e9,
        options={"chip_config_name": "megacore"},
    ),
    "v5e": Chip(
        {1: "v5e:1x1", 4: "v5e:2x2", 16: "v5e:4x4"},
        peak=197e12,
        clock=1.5e9,
        memory=16e9,
        bandwidth=819e9,
        ici=200e9,
    ),
    "v6e": Chip(
        {1: "v6e:1x1", 4: "v6e:2x2", 16: "v6e:4x4"},
        peak=918e12,
        clock=1.75e9,
        memory=32e9,
        bandwidth=1640e9,
        ici=448e9,
    ),
}


def devices(kind: str, chips: int) -> list[jax.Device]:
    """The devices of a TPU that is described to the compiler, and need not exist.

    Loads libtpu into this process: call it only where nothing else is to be computed.

    **Raises:** `ImportError` without libtpu; `ValueError` for a kind or number of chips
    that is not in `CHIPS`.
    """
    if kind not in CHIPS:
        names = ", ".join((*CHIPS, *cuda.CARDS))
        raise ValueError(f"chip must be one of {names}, not {kind!r}.")
    known = CHIPS[kind].topologies
    if chips not in known:
        numbers = ", ".join(map(str, known))
        raise ValueError(f"chips must be one of {numbers}, not {chips}.")
    named = os.environ.get("TPU_LIBRARY_PATH")
    if not named and importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            'the TPU compiler is not installed: pip install "jnode[tpu]", best into an '
            "environment of its own, or name its libtpu.so by TPU_LIBRARY_PATH."
        )
    # It is only to compile, so other processes may use it too; and it need not ask the
    # network what machine this is.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    from jax.experimental import topologies

    return topologies.get_topology_desc(
        platform="tpu", topology_name=known[chips], **CHIPS[kind].options
    ).devices


def _train(config: TrainConfig, shapes: "Shapes") -> tuple[Callable, tuple]:
    step = make_step(config, 1000, shapes.mesh)
    state, rebuild = shapes.whole(shapes.state(config))

    def program(state, images, labels):
        state, metrics = step((images, labels), rebuild(state))
        return eqx.filter(state, eqx.is_array), metrics

    return program, (state, shapes.images("uint8"), shapes.labels())


def _dispatch(config: TrainConfig, shapes: "Shapes") -> tuple[Callable, tuple]:
    steps = make_steps(config, 1000, shapes.mesh)
    state, rebuild = shapes.whole(shapes.state(config))
    number, rows = jax.ShapeDtypeStruct((), "int32"), (IMAGES,)
    images = jax.ShapeDtypeStruct((*rows, *shapes.image), "uint8")
    each = jax.ShapeDtypeStruct(rows, "int32")
    batches = Resident(images, each, each, number, shapes.batch, shapes.mesh)
    metrics = eqx.filter_eval_shape(empty_metrics, config.loss)
    given, regiven = shapes.whole((batches, metrics, number))

    def program(state, given):
        state, metrics = steps(regiven(given), rebuild(state))
        return eqx.filter(state, eqx.is_array), metrics

    return program, (state, given)


def _evaluate(config: TrainConfig, shapes: "Shapes") -> tuple[Callable, tuple]:
    model, rebuild = shapes.whole(shapes.baked(config))

    def program(model, images):
        return jnp.argmax(Sharded(batched(rebuild(model)), shapes.mesh)(images), axis=1)

    return program, (model, shapes.images("float32"))


def _attack(config: TrainConfig, shapes: "Shapes") -> tuple[Callable, tuple]:
    model, rebuild = shapes.whole(shapes.baked(config))
    attack, budget = PGD(steps=1), Budget("linf", 0.1)

    def program(model, images, labels):
        spread = Sharded(batched(rebuild(model)), shapes.mesh)
        return attack(spread, images, labels, budget, key=jax.random.key(0))

    return program, (model, shapes.images("float32"), shapes.labels())


PROGRAMS = {
    "train": _train,
    "dispatch": _dispatch,
    "evaluate": _evaluate,
    "attack": _attack,
}
"""By name: a training step, many of them in one program on images that lie on the
device, predictions, and PGD of one step."""


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


def compile_program(
    name: str, preset: str, kind: str, chips: int, *, per_device: int = 128
) -> dict[str, Any]:
    """Compiles one program for TPUs, or for a GPU, that need not exist.

    **Arguments:** the program, of `PROGRAMS`; the preset of training whose model it is
    of; the kind and number of chips, of `CHIPS`, or one card of `cuda.CARDS`; images on
    each device at a time.

    **Returns:** a row of numbers, of one chip: FLOPs by count; bytes by XLA (which
    counts a loop's body once); and of a TPU the compiler's cycles with loops multiplied
    out, as seconds, and the shares of peak.

    **Raises:** what `devices` and `get_preset` raise.
    """
    card = kind in cuda.CARDS
    mesh = data_mesh(cuda.devices(kind) if card else devices(kind, chips))
    config = get_preset(preset)
    batch = per_device * mesh.size
    config = dataclasses.replace(config, batch_size=batch)
    image = CIFAR if "cifar" in config.data.name else MNIST
    program, args = PROGRAMS[name](config, Shapes(mesh, image, batch))
    turns = TURNS[name]
    done = work(program, *args, turns=turns, platform="cuda" if card else "tpu")
    begin = time.perf_counter()
    donated = (0,) if name in ("train", "dispatch") else ()
    compiled = jax.jit(program, donate_argnums=donated).lower(*args).compile()
    compiling = time.perf_counter() - begin
    text, memory = compiled.as_text(), compiled.memory_analysis()
    found = collectives(text)
    told = cuda.cost(compiled) if card else compiled.cost_analysis()
    timed = {} if card else _timed(text, turns, done, CHIPS[kind])
    return {
        "program": name,
        "preset": preset,
        "chip": kind,
        "chips": mesh.size,
        "images_per_device": per_device,
        "flops": done.flops,
        "mxu_flops": done.mxu_flops,
        "bytes": told["bytes accessed"],
        "memory_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        "gradient_bytes": gradient_bytes(config, image),
        "collectives": found.counts,
        "collectives_in_loops": found.in_loops,
        **timed,
        "compile_seconds": round(compiling, 1),
    }


def _timed(text: str, turns: int, done: Work, chip: Chip) -> dict[str, float]:
    """The compiler's estimate of a TPU program's time, and the shares of peak."""
    seconds = cycles(text, turns=turns) / chip.clock
    return {
        "estimated_seconds": seconds,
        "share_of_peak": done.flops / (seconds * chip.peak),
        "mxu_share": done.mxu_flops / (seconds * chip.peak),
    }


def gradient_bytes(config: TrainConfig, image: tuple[int, int, int]) -> int:
    """What a training step's all-reduce carries, but for a few metrics."""
    state = eqx.filter_eval_shape(
        init_state, config, image_shape=image, classes=10, total_steps=1000
    )
    leaves = [x for x in jax.tree.leaves(state.model) if hasattr(x, "dtype")]
    return sum(x.size * x.dtype.itemsize for x in leaves)
