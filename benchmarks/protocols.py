"""What the protocols cost: python benchmarks/protocols.py RUN_DIR ...

Evaluates each run by each protocol at one budget, and writes the time that was said
beforehand, the time that it took and what was left standing into
benchmarks/results/protocols.json and .md.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import tyro

from jnode import attacks
from jnode._process import run
from jnode.evaluation.cost import minutes
from jnode.runs import evaluate_run

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Args:
    """Times the protocols on runs."""

    run_dirs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders that scripts/train.py wrote."""

    protocols: tuple[str, ...] = ("quick", "standard")
    """Which protocols."""

    norm: str = "linf"
    """Of the budget."""

    epsilon: str = "0.1"
    """The budget."""

    num_examples: int | None = None
    """How many test images; by default the protocol's number."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    rows = []
    for folder in args.run_dirs:
        for protocol in args.protocols:
            start = time.perf_counter()
            found = evaluate_run(
                folder,
                protocol=protocol,
                norm=args.norm,
                epsilons=[attacks.number(args.epsilon)],
                num_examples=args.num_examples,
            )
            took = time.perf_counter() - start
            rows.append({"run": Path(folder).name, "took_seconds": took, **found})
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "protocols.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "protocols.md").write_text(table(rows))
    print(table(rows))


def table(rows: list[dict]) -> str:
    """Markdown: a row a run and protocol."""
    lines = [
        "| run | solver | protocol | images | said beforehand, at most | attacks "
        "| with checks | standing % | flags |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        attacking = sum(attack["seconds"] for attack in row["attacks"])
        flags = ", ".join(flag.split(":")[0] for flag in row["flags"]) or "none"
        lines.append(
            f"| {row['run']} | {row['solver']} | {row['protocol']} | "
            f"{row['num_examples']} | {minutes(row['estimated_seconds'])} | "
            f"{minutes(attacking)} | {minutes(row['took_seconds'])} | "
            f"{100 * row['worst_case'][0]['robust_accuracy']:.1f} | {flags} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main)
