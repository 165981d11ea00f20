"""Compiles the real programs for TPUs and GPUs that are not there.

    python benchmarks/compile_tpu.py [--chip v5e h100 ...] [--out FILE]

Needs the extra `tpu`; for GPUs, JAX's plugin for CUDA (`cuda.py`). Nothing is run: the
numbers are the compiler's own estimates. Rows of other programs that FILE.json already
has are kept.
"""

import dataclasses
import itertools
import json
import os
from pathlib import Path

# Nothing is computed here; and nothing may look for a real TPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import tyro
from cuda import CARDS
from tpu import CHIPS, compile_program

from jnode._files import write_json
from jnode._process import run, versions

# The models that come with the package (certified_mnist_wide has the same programs),
# and one each of the other ways to train.
PRESETS = ("certified_mnist", "certified_cifar10", "contractive", "ortho")


@dataclasses.dataclass(frozen=True)
class Args:
    """Compiles programs for chips that are not there, and tells what they cost."""

    preset: tuple[str, ...] = PRESETS
    """The presets of training whose models to take."""

    program: tuple[str, ...] = ("train", "evaluate", "attack")
    """Of: train, dispatch, evaluate, attack."""

    chip: tuple[str, ...] = tuple(CHIPS)
    """Of: v4, v5e, v6e; a100, h100."""

    chips: tuple[int, ...] = (1, 4, 16)
    """Numbers of chips; of GPUs always one."""

    images: tuple[int, ...] = (256,)
    """Images on each device at a time."""

    out: str | None = None
    """Where to write: OUT.json and OUT.md; by default only printed."""


HEAD = (
    "program | preset | chip | images / device | MFLOP | MB by XLA | memory MB | "
    "collectives | in loops | est. µs | of peak % | MXU busy %"
)


def line(row: dict) -> str:
    """One row of the table; a GPU's has no estimate of time."""
    kinds = ", ".join(f"{n} {k}" for k, n in row["collectives"].items()) or "none"
    timed = ("-", "-", "-")
    if "estimated_seconds" in row:
        timed = (
            f"{row['estimated_seconds'] * 1e6:.0f}",
            f"{100 * row['share_of_peak']:.2f}",
            f"{100 * row['mxu_share']:.1f}",
        )
    cells = (
        row["program"],
        row["preset"],
        f"{row['chip']} x {row['chips']}",
        row["images_per_device"],
        f"{row['flops'] / 1e6:.0f}",
        f"{row['bytes'] / 1e6:.1f}",
        f"{row['memory_bytes'] / 1e6:.1f}",
        kinds,
        row["collectives_in_loops"],
        *timed,
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def key(row: dict) -> tuple:
    """What a row is about."""
    names = ("preset", "chip", "chips", "images_per_device", "program")
    return tuple(row[name] for name in names)


def write(out: Path, rows: list[dict]) -> None:
    """Adds the rows to OUT.json in place of those about the same, and writes OUT.md."""
    path = out.with_suffix(".json")
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    known = {key(row): row for row in (*old, *rows)}
    write_json(path, {"rows": list(known.values()), "versions": versions()})
    head = [f"| {HEAD} |", "| --- " * len(HEAD.split("|")) + "|"]
    table = [*head, *map(line, known.values())]
    out.with_suffix(".md").write_text("\n".join(table) + "\n")


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    print(f"| {HEAD} |", flush=True)
    each = (args.preset, args.chip, args.chips, args.images, args.program)
    for preset, chip, chips, images, program in itertools.product(*each):
        # Predictions call back to the host where a solve fails, and that cannot be
        # compiled for a card that is not there.
        if chip in CARDS and (chips > 1 or program not in ("train", "dispatch")):
            continue
        row = compile_program(program, preset, chip, chips, per_device=images)
        print(line(row), flush=True)
        if args.out:
            write(Path(args.out), [row])


if __name__ == "__main__":
    run(main)
