"""How near the real programs come to what a device can do.

    python benchmarks/roofline.py [--preset certified_mnist ...] [--out FILE]

Runs a training step, predictions and a step of PGD on JAX's first device, and compares
each with a roofline that is measured there too: float32 products of large matrices in
full precision, and the copy of a large array. A program that does F floating-point
operations and moves B bytes (XLA's count, which takes a loop's body once, so a lower
bound) cannot take less than the larger of F over the one and B over the other. Needs no
data. Writes FILE.json and FILE.md.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from hlo_cost import work
from tpu import CIFAR, MNIST, PROGRAMS, TURNS, Shapes

from jnode._files import write_json
from jnode._process import run, versions
from jnode.sharding import data_mesh
from jnode.train import TrainConfig, get_preset
from jnode.train.step import init_state


@dataclasses.dataclass(frozen=True)
class Args:
    """Times programs of presets, and compares them with the device's roofline."""

    preset: tuple[str, ...] = ("certified_mnist", "certified_cifar10", "ortho")
    """The presets of training whose models to take."""

    program: tuple[str, ...] = ("train", "evaluate", "attack")
    """Of: train, evaluate, attack."""

    images: tuple[int, ...] = (256,)
    """Images at a time."""

    size: int = 8192
    """Rows of the square matrices that the roofline is measured with."""

    rounds: int = 20
    """How often each program is timed; the median counts."""

    out: str | None = None
    """Where to write: OUT.json and OUT.md; by default only printed."""


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """The median time of a call, finished, after two that warm up."""
    times = []
    for i in range(rounds + 2):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        if i >= 2:
            times.append(time.perf_counter() - begin)
    return float(np.median(times))


def roofline(size: int, rounds: int) -> dict[str, float]:
    """FLOP/s of float32 products in full precision, and bytes/s of a copy."""
    x = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    copy = jax.jit(lambda x: x + 1)
    return {
        "flops_per_second": 2 * size**3 / seconds(lambda: product(x), rounds),
        "bytes_per_second": 2 * x.nbytes / seconds(lambda: copy(x), rounds),
    }


def arguments(name: str, config: TrainConfig, args: tuple, image: tuple) -> list:
    """Arrays in place of the shapes of a program's arguments: the model as it is
    initialised, and random images and labels."""
    state = init_state(config, image_shape=image, classes=10, total_steps=1000)
    own = state if name == "train" else state.model.bake()
    model = jax.device_put(
        eqx.filter(own, eqx.is_array), jax.tree.map(lambda x: x.sharding, args[0])
    )
    rng = np.random.default_rng(0)
    values = {
        "uint8": lambda shape: rng.integers(0, 256, shape, np.uint8),
        "float32": lambda shape: rng.uniform(size=shape).astype(np.float32),
        "int32": lambda shape: rng.integers(0, 10, shape, np.int32),
    }
    given = [
        jax.device_put(values[str(x.dtype)](x.shape), x.sharding) for x in args[1:]
    ]
    return [model, *given]


def measure(name: str, preset: str, images: int, roof: dict, rounds: int) -> dict:
    """One program's time, and its share of the roofline."""
    config = dataclasses.replace(get_preset(preset), batch_size=images)
    mesh = data_mesh(jax.devices()[:1])
    image = CIFAR if "cifar" in config.data.name else MNIST
    program, shapes = PROGRAMS[name](config, Shapes(mesh, image, images))
    turns = {"turns": TURNS[name], "platform": jax.default_backend()}
    flops = work(program, *shapes, **turns).flops
    compiled = jax.jit(program).lower(*shapes).compile()
    given = arguments(name, config, shapes, image)
    took = seconds(lambda: compiled(*given), rounds)
    moved = float((compiled.cost_analysis() or {}).get("bytes accessed", 0.0))
    least = max(flops / roof["flops_per_second"], moved / roof["bytes_per_second"])
    return {
        "program": name,
        "preset": preset,
        "images": images,
        "milliseconds": 1e3 * took,
        "flops": flops,
        "bytes": moved,
        "share_of_products": flops / took / roof["flops_per_second"],
        "share_of_roofline": least / took,
    }


HEAD = (
    "program | preset | images | ms | images/s | GFLOP | MB by XLA | of products % | "
    "of roofline %"
)


def table(device: str, roof: dict, rows: list[dict]) -> str:
    lines = [
        f"{device}: {roof['flops_per_second'] / 1e12:.3g} TFLOP/s of float32 products, "
        f"{roof['bytes_per_second'] / 1e9:.4g} GB/s of copies, as measured.",
        "",
        f"| {HEAD} |",
        "| --- | --- |" + " ---: |" * 7,
    ]
    for row in rows:
        cells = (
            row["program"],
            row["preset"],
            row["images"],
            f"{row['milliseconds']:.3f}",
            f"{1e3 * row['images'] / row['milliseconds']:,.0f}",
            f"{row['flops'] / 1e9:.2f}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{100 * row['share_of_products']:.1f}",
            f"{100 * row['share_of_roofline']:.1f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    device, roof = jax.devices()[0].device_kind, roofline(args.size, args.rounds)
    rows = []
    for preset in args.preset:
        for images in args.images:
            for name in args.program:
                rows.append(measure(name, preset, images, roof, args.rounds))
                print(table(device, roof, rows[-1:]).splitlines()[-1], flush=True)
    text = table(device, roof, rows)
    if args.out:
        out = Path(args.out)
        found = {"device": device, "roofline": roof, "rows": rows}
        write_json(out.with_suffix(".json"), {**found, "versions": versions()})
        out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    run(main)
