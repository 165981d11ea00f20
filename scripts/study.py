"""Run a declared study: python scripts/study.py small runs/study.

Studies: small (each question once, on the embedded digits), mnist, cifar10, cifar100,
solvers, lipschitz. The same command goes on after an interruption; started several
times on one folder, the processes share the cells.
"""

import dataclasses
from typing import Annotated

import tyro

from jnode._process import run
from jnode.study import STUDIES, Cell, run_study, write_study


@dataclasses.dataclass(frozen=True)
class Args:
    """Trains and measures the cells of a study; writes results.jsonl and a report."""

    study: Annotated[str, tyro.conf.Positional]
    """One of: small, mnist, cifar10, cifar100, solvers, lipschitz."""

    folder: Annotated[str, tyro.conf.Positional]
    """The folder to write: a run folder for each cell, results.jsonl, the report."""

    dry_run: bool = False
    """Print the cells and run nothing."""

    retry_failed: bool = False
    """Run failed cells again."""

    data_dir: str | None = None
    """The TFDS folder; by default TFDS_DATA_DIR."""

    quiet: bool = False
    """Show no progress."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.study not in STUDIES:
        raise ValueError(
            f"study must be one of {', '.join(STUDIES)}, not {args.study!r}."
        )
    cells = STUDIES[args.study]()
    if args.dry_run:
        return tell(cells)
    try:
        rows = run_study(
            cells,
            args.folder,
            data_dir=args.data_dir,
            retry_failed=args.retry_failed,
            progress=not args.quiet,
        )
    except KeyboardInterrupt:
        print("Stopped. The same command goes on after the last finished cell.")
        raise
    failed = [row for row in rows if row["error"] is not None]
    print(f"{len(rows)} of {len(cells)} cells done, {len(failed)} of them failed.")
    print(f"Report: {write_study(rows, args.folder, args.study).resolve()}")


def tell(cells: list[Cell]) -> None:
    """Prints each cell: what is trained and how it is solved."""
    width = max(len(cell.name) for cell in cells)
    for cell in cells:
        print(
            f"{cell.name:{width}}  {cell.train.epochs} epochs of "
            f"{cell.train.data.name}, solved by {cell.evaluated}"
        )
    trained = len({cell.trained for cell in cells})
    print(f"{len(cells)} cells, of {trained} trained models.")


if __name__ == "__main__":
    run(main)
