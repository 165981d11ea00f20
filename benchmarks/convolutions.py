"""Convolutions inside of a loop: python benchmarks/convolutions.py

A loop, as of a solver or an attack, applies a 3x3 convolution and a relu several times
over, and its gradients are taken with respect to the kernel and to the images: by
`eqx.nn.Conv2d` under `jax.vmap`, by `jax.lax` with ordered axes, by
`jnode.linear.convolve`, and by PyTorch where it is installed. All in turn; medians.
Writes benchmarks/results/convolutions.{json,md}.
"""

import dataclasses
import os
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro

from jnode._files import write_json
from jnode._process import run, versions
from jnode.linear import convolve

RESULTS = Path(__file__).parent / "results"
SIZES = ((7, 64, 128), (16, 64, 32), (28, 32, 32))  # side, channels, batch
STEPS = 4
SAME = ((1, 1), (1, 1))


@dataclasses.dataclass(frozen=True)
class Args:
    """Times convolutions inside of a loop."""

    rounds: int = 5
    """Rounds; the medians count."""


def looped(step):
    """The loss of a loop of this step, and its gradients."""

    def loss(kernel, x):
        body = lambda x, _: (jax.nn.relu(step(kernel, x)), None)
        return jnp.sum(jax.lax.scan(body, x, length=STEPS)[0] ** 2)

    return [jax.jit(f) for f in (loss, jax.grad(loss), jax.grad(loss, 1))]


def in_jax(kernel, x):
    """By name: the three functions, bound to their inputs."""

    def by_equinox(kernel, x):
        layer = eqx.nn.Conv2d(*kernel.shape[2:], 3, padding=1, key=jr.key(0))
        layer = eqx.tree_at(lambda m: m.weight, layer, kernel.transpose(3, 2, 0, 1))
        return jax.vmap(layer)(x)

    def by_lax(kernel, x):
        order = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), SAME, dimension_numbers=order
        )

    def ours(kernel, x):
        return convolve(x, kernel, padding=SAME)

    forms = {
        "`eqx.nn.Conv2d`": (by_equinox, x.transpose(0, 3, 1, 2)),
        "`jax.lax`, ordered": (by_lax, x),
        "`jnode.linear.convolve`": (ours, x),
    }
    return {
        name: [
            lambda f=f, x=x: jax.block_until_ready(f(kernel, x)) for f in looped(form)
        ]
        for name, (form, x) in forms.items()
    }


def in_torch(kernel, x):
    """The same in PyTorch, or nothing where it is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(os.cpu_count() or 1)
    kernel = torch.tensor(np.asarray(kernel)).permute(3, 2, 0, 1).contiguous()
    x = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2).contiguous()

    def loss(kernel, x):
        for _ in range(STEPS):
            x = torch.relu(torch.nn.functional.conv2d(x, kernel, padding=1))
        return (x**2).sum()

    def forward():
        with torch.no_grad():
            loss(kernel, x)

    def by_kernel():
        k = kernel.clone().requires_grad_()
        torch.autograd.grad(loss(k, x), k)

    def by_images():
        y = x.clone().requires_grad_()
        torch.autograd.grad(loss(kernel, y), y)

    return {"PyTorch": [forward, by_kernel, by_images]}


def measure(side: int, channels: int, batch: int, rounds: int) -> dict:
    """Milliseconds of each form: forward, gradient by the kernel and by the images."""
    keys = jr.split(jr.key(0))
    kernel = jr.normal(keys[0], (3, 3, channels, channels)) / (3 * channels**0.5)
    x = jr.normal(keys[1], (batch, side, side, channels))
    forms = in_jax(kernel, x) | in_torch(kernel, x)
    times = {name: [[], [], []] for name in forms}
    for turn in range(rounds + 1):
        for name, calls in forms.items():
            for call, found in zip(calls, times[name], strict=True):
                call()  # also lets PyTorch's threads come to rest
                begin = time.perf_counter()
                call()
                if turn:
                    found.append(1e3 * (time.perf_counter() - begin))
    return {name: [float(np.median(t)) for t in found] for name, found in times.items()}


def table(result: dict) -> str:
    """Markdown, one row for each size and form."""
    lines = [
        f"Milliseconds of {STEPS} 3x3 convolutions in a loop, in brackets times ours. "
        f"{result['cores']} cores, jax {result['versions']['jax']}, medians of "
        f"{result['rounds']} rounds in turn.",
        "",
        "| images | form | forward | gradient by the kernel | gradient by the images |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        ours = row["ms"]["`jnode.linear.convolve`"]
        shape = "{batch} of {side} x {side} x {channels}".format(**row)
        for name, times in row["ms"].items():
            pairs = zip(times, ours, strict=True)
            cells = " | ".join(f"{t:.1f} ({t / o:.1f})" for t, o in pairs)
            lines.append(f"| {shape} | {name} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    rows = []
    for side, channels, batch in SIZES:
        found = measure(side, channels, batch, args.rounds)
        rows.append({"side": side, "channels": channels, "batch": batch, "ms": found})
        print(rows[-1], flush=True)
    result = {
        "rows": rows,
        "rounds": args.rounds,
        "cores": os.cpu_count(),
        "versions": versions(),
    }
    write_json(RESULTS / "convolutions.json", result)
    (RESULTS / "convolutions.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    run(main)
