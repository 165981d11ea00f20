"""Compiles the real programs for TPUs that are not there.

    python benchmarks/compile_tpu.py

Needs the extra `tpu`. Nothing is run; the numbers are the compiler's own estimates.
"""

import dataclasses
import os
from pathlib import Path

# Nothing is computed here; and nothing may look for a real TPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import tyro
from tpu import CHIPS, PROGRAMS, compile_program

from jnode._files import write_json
from jnode._process import run, versions


@dataclasses.dataclass(frozen=True)
class Args:
    """Compiles programs for TPUs and tells what they would cost."""

    preset: tuple[str, ...] = ("contractive",)
    """The presets of training whose models to take."""

    program: tuple[str, ...] = tuple(PROGRAMS)
    """Of: train, dispatch, evaluate, attack."""

    chip: tuple[str, ...] = tuple(CHIPS)
    """Of: v4, v5e, v6e."""

    chips: tuple[int, ...] = (1, 4, 16)
    """Numbers of chips."""

    images: tuple[int, ...] = (128,)
    """Images on each device at a time."""

    out: str | None = None
    """Where to write: OUT.json and OUT.md; by default only printed."""


HEAD = (
    "program | preset | TPU | images / device | MFLOP | MB by XLA | memory MB | "
    "collectives | in loops | est. µs | of peak % | MXU busy %"
)


def line(row: dict) -> str:
    kinds = ", ".join(f"{n} {k}" for k, n in row["collectives"].items()) or "none"
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
        f"{row['estimated_seconds'] * 1e6:.0f}",
        f"{100 * row['share_of_peak']:.2f}",
        f"{100 * row['mxu_share']:.1f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    head = [f"| {HEAD} |", "| --- " * len(HEAD.split("|")) + "|"]
    print("\n".join(head), flush=True)
    rows, lines = [], []
    for preset in args.preset:
        for chip in args.chip:
            for chips in args.chips:
                for images in args.images:
                    for program in args.program:
                        row = compile_program(
                            program, preset, chip, chips, per_device=images
                        )
                        rows.append(row)
                        lines.append(line(row))
                        print(lines[-1], flush=True)
                        if args.out:
                            write(Path(args.out), rows, [*head, *lines])


def write(out: Path, rows: list[dict], table: list[str]) -> None:
    write_json(out.with_suffix(".json"), {"rows": rows, "versions": versions()})
    out.with_suffix(".md").write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    run(main)
