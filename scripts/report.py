"""Draw the report of evaluated runs, or of studies: python scripts/report.py DIR ..."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jnode import report
from jnode._files import absolute, as_path
from jnode._process import run
from jnode.study import read_rows, write_study
from jnode.study.run import RESULTS


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes one self-contained HTML page about some evaluated runs, and its table as
    Markdown beside it."""

    run_dirs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders that scripts/evaluate.py evaluated; or folders of scripts/study.py, or
    their results.jsonl files, which make one study together."""

    out: str | None = None
    """The page to write; by default report.html in the first folder."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if not args.run_dirs:
        raise ValueError("run_dirs must name at least one evaluated run.")
    if all(is_study(as_path(given)) for given in args.run_dirs):
        return tell_study(args)
    runs = [report.read_run(folder) for folder in args.run_dirs]
    path = report.write(runs, args.out or as_path(args.run_dirs[0]) / "report.html")
    table = report.table(runs)
    path.with_suffix(".md").write_text(table + "\n")
    print(table)
    print(f"\nReport: {absolute(path)}")


def is_study(path: Path) -> bool:
    return path.suffix == ".jsonl" or (path / RESULTS).is_file()


def tell_study(args: Args) -> None:
    first = Path(args.run_dirs[0])
    folder = first if first.is_dir() else first.parent
    out = Path(args.out or folder / "report.html")
    rows = read_rows(args.run_dirs)
    page = write_study(rows, out.parent, out.stem)
    print(page.with_suffix(".md").read_text())
    print(f"Report: {page.resolve()}")


if __name__ == "__main__":
    run(main)
