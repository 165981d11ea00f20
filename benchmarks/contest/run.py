"""Published neural ODEs under one judge: python benchmarks/contest/run.py FOLDER.

Rebuilds published checkpoints in JAX, compares their clean accuracy with the published
one, and attacks each by AutoAttack's standard version, transfers and checks; beside
them are models of this package. FOLDER holds checkouts of the authors' repositories, of
which nothing but the checkpoints is read:

- `TisODE` (github.com/HanshuYAN/TisODE),
- `GAINS` (github.com/eth-sri/GAINS),
- `StructuredNeuralNetworks` (github.com/davidemurari/StructuredNeuralNetworks).

Needs PyTorch, to read checkpoints, and MNIST and CIFAR-10 for TFDS. Each row, a model
and a budget, is written to benchmarks/results/contest.json and .md, and into the table
of docs/contest.md, when it is finished. Rows that are there with as many images are not
measured again; an attack that was finished before an interruption is taken from WORK.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated

import tyro
from checkpoints import test_set
from contestants import CONTESTANTS, Budget, Contestant
from judge import attacked, facts, label, ours
from table import table

from jnode._files import claimed, write_json
from jnode._process import run

JSON = Path(__file__).parent.parent / "results" / "contest.json"
PAGE = Path(__file__).parent.parent.parent / "docs" / "contest.md"


@dataclasses.dataclass(frozen=True)
class Args:
    """Attacks published neural ODEs and this package's models alike."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder that holds checkouts of the authors' repositories."""

    only: tuple[str, ...] = ()
    """Names of contestants or papers; by default all."""

    images: int = 500
    """Test images to attack; with 0 only clean and certified accuracy are measured."""

    clean: int = 10_000
    """Test images for clean and certified accuracy."""

    budgets: tuple[str, ...] = ()
    """Only these, such as linf:0.3 or l2:36/255; by default each contestant's."""

    batch_size: int = 100
    """Images that are attacked at a time."""

    work: Path = Path("runs/contest")
    """Where finished attacks are kept until their row is complete."""

    data_dir: str | None = None
    """The TFDS folder; by default TFDS_DATA_DIR."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    for one in chosen(args):
        entry = read().get(one.name, {"rows": {}})
        if not one.repository:
            test = test_set(one.dataset, args.data_dir)
            write(one.name, *ours(one, test), args.work)
            continue
        todo = [
            b for b in one.budgets if asked(b, args) and left(entry, b, args.images)
        ]
        unknown = entry.get("num_clean", 0) < args.clean
        if not todo and not unknown:
            continue
        model = one.make(args.folder / one.repository)
        test = test_set(one.dataset, args.data_dir)
        if unknown:
            write(one.name, facts(one, model, test.take(args.clean)), {}, args.work)
        for budget in todo:
            name = f"{one.name}-{label(budget)}".replace(" ", "-").replace("/", "_")
            row = attacked(
                model,
                test.take(args.images),
                budget,
                batch_size=args.batch_size,
                place=args.work / name,
            )
            write(one.name, {}, {label(budget): row}, args.work)
    print(table(read()))


def read() -> dict:
    """The results so far."""
    return json.loads(JSON.read_text()) if JSON.is_file() else {}


def write(name: str, found: dict, rows: dict, work: Path) -> None:
    """Adds facts and rows of a contestant to the results, and to the page's table."""
    # Read again, since another process may have finished a row.
    work.mkdir(parents=True, exist_ok=True)
    with claimed(work / ".results.lock", wait=True):
        results = read()
        entry = results.setdefault(name, {"rows": {}})
        entry |= found
        entry["rows"] |= rows
        # In the order of the list, and with its published figures.
        results = {c.name: results[c.name] for c in CONTESTANTS if c.name in results}
        for one in CONTESTANTS:
            if one.name in results:
                stated = [dataclasses.asdict(p) for p in one.published]
                results[one.name]["published"] = stated
        write_json(JSON, results)
        text = table(results)
        JSON.with_suffix(".md").write_text(text)
        # The page has one table with this head.
        head = re.escape(text.splitlines()[0])
        page = re.sub(rf"{head}\n(\|.*\n)*", lambda _: text, PAGE.read_text())
        PAGE.write_text(page)


def chosen(args: Args) -> list[Contestant]:
    """The contestants that were asked for.

    **Raises:** `ValueError` for a name that nobody has.
    """
    known = {c.name for c in CONTESTANTS} | {c.paper for c in CONTESTANTS}
    for name in args.only:
        if name not in known:
            raise ValueError(
                f"only must be among {', '.join(sorted(known))}, not {name!r}."
            )
    named = lambda c: not args.only or {c.name, c.paper} & set(args.only)
    return [c for c in CONTESTANTS if named(c)]


def asked(budget: Budget, args: Args) -> bool:
    """Whether the command line left this budget in."""
    return not args.budgets or label(budget) in args.budgets


def left(entry: dict, budget: Budget, images: int) -> bool:
    """Whether a row is missing, or had fewer images."""
    return entry["rows"].get(label(budget), {}).get("num_examples", 0) < images


if __name__ == "__main__":
    run(main)
