"""Run a study: python scripts/study.py small runs/study, or my_plan.py runs/own.

A study is a plan: a Python file that defines `cells`, a list of `jnode.study.Subject`
(a model that is there) and `jnode.study.Cell` (a model to be trained). The plans in
scripts/plans go by their names. The same command goes on after an interruption; started
several times on one folder, the processes share the cells.
"""

import dataclasses
import runpy
import traceback
from pathlib import Path
from typing import Annotated

import tyro

from jnode._process import EXPECTED, run
from jnode.study import Cell, Subject, run_study, write_study
from jnode.study.run import check_cells

PLANS = Path(__file__).parent / "plans"


@dataclasses.dataclass(frozen=True)
class Args:
    """Trains and measures the cells of a study; writes results.jsonl and a report."""

    study: Annotated[str, tyro.conf.Positional]
    """A plan: a file my_plan.py, or one of small, mnist, cifar10, cifar100, solvers and
    lipschitz."""

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
    cells = planned(args.study)
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
    print(f"Report: {write_study(rows, args.folder, Path(args.study).stem).resolve()}")


def planned(study: str) -> list[Cell | Subject]:
    """The cells of a plan.

    **Raises:** `ValueError` for an unknown name, and for a file that raises an error,
    with its line, or that defines no cells;
    `FileNotFoundError` for a file that is not there.
    """
    names = sorted(path.stem for path in PLANS.glob("*.py"))
    if study not in names and not study.endswith(".py"):
        raise ValueError(
            f"study must be one of {', '.join(names)}, or a file my_plan.py that "
            f"defines cells, not {study!r}."
        )
    path = PLANS / f"{study}.py" if study in names else Path(study)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: name the file of a plan.")
    try:
        cells = runpy.run_path(str(path)).get("cells")
    except EXPECTED as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [x.lineno for x in frames if x.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else f"{path}"
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(cells, list | tuple):
        raise ValueError(
            f"{path} must define cells, a list of jnode.study.Subject or Cell."
        )
    check_cells(cells)
    return list(cells)


def tell(cells: list[Cell | Subject]) -> None:
    """Prints each cell: what is trained, if anything, and how it is solved."""
    width = max(len(cell.name) for cell in cells)
    for cell in cells:
        if isinstance(cell, Cell):
            what = f"{cell.train.epochs} epochs of {cell.train.data.name}"
            print(f"{cell.name:{width}}  {what}, solved by {cell.evaluated}")
        else:
            what = f"{len(cell.labels)} images of {cell.dataset}"
            print(f"{cell.name:{width}}  {what}, solved by {cell.solver or 'itself'}")
    trained = len({cell.trained for cell in cells if isinstance(cell, Cell)})
    print(f"{len(cells)} cells, of {trained} trained models.")


if __name__ == "__main__":
    run(main)
