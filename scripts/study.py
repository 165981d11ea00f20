"""Run a declared study: python scripts/study.py small runs/study.

Studies: small (everything once, on the embedded digits), mnist, cifar10, cifar100,
solvers, lipschitz. The same command goes on after an interruption; started several
times on one folder, the processes share the cells.
"""

import dataclasses
import sys
from typing import Annotated

import tyro

from jnode._cli import run
from jnode.study import STUDIES, Cell, estimate, run_study, write_study


@dataclasses.dataclass(frozen=True)
class Args:
    """Trains and measures the cells of a study; writes results.jsonl and a report."""

    study: Annotated[str, tyro.conf.Positional]
    """One of: small, mnist, cifar10, cifar100, solvers, lipschitz."""

    folder: Annotated[str, tyro.conf.Positional]
    """Where to: a run folder a cell, results.jsonl, the report and its figures."""

    dry_run: bool = False
    """Print the cells and what they are estimated to cost, and run nothing."""

    retry_failed: bool = False
    """Try cells again that failed."""

    data_dir: str | None = None
    """The TFDS folder; by default TFDS_DATA_DIR."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.study not in STUDIES:
        raise ValueError(
            f"study must be one of {', '.join(STUDIES)}, not {args.study!r}."
        )
    cells = STUDIES[args.study]()
    if args.dry_run:
        return tell(cells, args.data_dir)
    try:
        rows = run_study(
            cells,
            args.folder,
            data_dir=args.data_dir,
            retry_failed=args.retry_failed,
        )
    except KeyboardInterrupt:
        print("Stopped. The same command goes on after the last finished cell.")
        sys.exit(130)
    failed = [row for row in rows if row["error"] is not None]
    print(f"{len(rows)} of {len(cells)} cells done, {len(failed)} of them failed.")
    print(f"Report: {write_study(rows, args.folder, args.study).resolve()}")


def tell(cells: list[Cell], data_dir: str | None) -> None:
    """Prints each cell with what it is estimated to cost, and the sum."""
    costs = estimate(cells, data_dir=data_dir)
    width = max(len(cell.name) for cell in cells)
    for cell, cost in zip(cells, costs, strict=True):
        print(
            f"{cell.name:{width}}  training {minutes(cost.training)}, measuring "
            f"{minutes(cost.measuring)}, compilation {minutes(cost.compilation)}"
        )
    parts = [minutes(sum(part)) for part in zip(*costs, strict=True)]
    print(
        f"{len(cells)} cells, estimated: training {parts[0]}, measuring {parts[1]}, "
        f"compilation {parts[2]}."
    )


def minutes(seconds: float) -> str:
    """For people: `40 seconds`, `12 minutes`, `3.5 hours`."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} seconds"
    if seconds < 5400:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"


if __name__ == "__main__":
    run(main)
