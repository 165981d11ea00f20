"""Draw the report of some evaluated runs: python scripts/report.py RUN_DIR ..."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jnode import report
from jnode._cli import run


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes one self-contained HTML page about some evaluated runs, and its table as
    Markdown beside it."""

    run_dirs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders that scripts/evaluate.py evaluated."""

    out: str | None = None
    """The page to write; by default report.html in the first folder."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if not args.run_dirs:
        raise ValueError("run_dirs must name at least one evaluated run.")
    runs = [report.read_run(folder) for folder in args.run_dirs]
    path = report.write(runs, args.out or Path(args.run_dirs[0]) / "report.html")
    table = report.table(runs)
    path.with_suffix(".md").write_text(table + "\n")
    print(table)
    print(f"\nReport: {path.resolve()}")


if __name__ == "__main__":
    run(main)
