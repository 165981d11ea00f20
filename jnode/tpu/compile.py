"""A program compiled ahead of time, and what the compiler says of it."""

import dataclasses
import time
from typing import Any

import equinox as eqx
import jax

from jnode.sharding import collectives, data_mesh
from jnode.tpu.chips import CHIPS, devices
from jnode.tpu.cost import cycles, work
from jnode.tpu.programs import PROGRAMS, Shapes
from jnode.train import TrainConfig, get_preset
from jnode.train.state import init_state

# Turns of loops whose length is not known beforehand: the Cayley transform's inverse
# takes at most 11, and an attack is compiled for one step.
TURNS = {"train": 11, "evaluate": 1, "attack": 1}
CIFAR = (32, 32, 3)
MNIST = (28, 28, 1)


def compile_program(
    name: str, preset: str, kind: str, chips: int, *, per_device: int = 128
) -> dict[str, Any]:
    """Compiles one program for TPUs that need not exist.

    **Arguments:** the program, of `PROGRAMS`; the preset of training whose model it is
    of; the kind and number of chips, of `CHIPS`; images on each device at a time.

    **Returns:** a row of numbers, of one chip: FLOPs by count,
    bytes and `optimal_seconds` by XLA (which counts a loop's body once), the compiler's
    cycles with loops multiplied out and the seconds that they take, the shares of peak.

    **Raises:** what `jnode.tpu.devices` and `get_preset` raise.
    """
    mesh = data_mesh(devices(kind, chips))
    chip = CHIPS[kind]
    config = get_preset(preset)
    batch = per_device * mesh.size
    config = dataclasses.replace(config, batch_size=batch)
    image = CIFAR if "cifar" in config.data.name else MNIST
    program, args = PROGRAMS[name](config, Shapes(mesh, image, batch))
    turns = TURNS[name]
    done = work(program, *args, turns=turns)
    begin = time.perf_counter()
    donated = (0,) if name == "train" else ()
    compiled = jax.jit(program, donate_argnums=donated).lower(*args).compile()
    compiling = time.perf_counter() - begin
    text, memory = compiled.as_text(), compiled.memory_analysis()
    found = collectives(text)
    told = compiled.cost_analysis()
    seconds = cycles(text, turns=turns) / chip.clock
    return {
        "program": name,
        "preset": preset,
        "chip": kind,
        "chips": chips,
        "devices": mesh.size,
        "images_per_device": per_device,
        "flops": done.flops,
        "mxu_flops": done.mxu_flops,
        "xla_flops": told["flops"],
        "bytes": told["bytes accessed"],
        "memory_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "gradient_bytes": gradient_bytes(config, image),
        "collectives": found.counts,
        "collectives_in_loops": found.in_loops,
        "xla_optimal_seconds": told["optimal_seconds"],
        "estimated_seconds": seconds,
        "share_of_peak": done.flops / (seconds * chip.peak),
        "mxu_share": done.mxu_flops / (seconds * chip.peak),
        "compile_seconds": round(compiling, 1),
    }


def gradient_bytes(config: TrainConfig, image: tuple[int, int, int]) -> int:
    """What a training step's all-reduce carries, but for a few metrics."""
    state = eqx.filter_eval_shape(
        init_state, config, image_shape=image, classes=10, total_steps=1000
    )
    leaves = [x for x in jax.tree.leaves(state.model) if hasattr(x, "dtype")]
    return sum(x.size * x.dtype.itemsize for x in leaves)
