"""The results of runs: read from their folders and compared in a table."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jnode._files import absolute
from jnode.report.pictures import Pictures
from jnode.train.run_dir import RunDir

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1", "sigma": "σ"}
NONE = "–"
USUAL_RADII = {0.25, 0.5, 1.0, 1.5}
NEEDED = (
    "dataset",
    "split",
    "num_examples",
    "seed",
    "solver",
    "clean_accuracy",
    "attacks",
    "worst_case",
    "certified_accuracy",
    "certificate",
    "flags",
    "nfe",
    "versions",
    "device",
)


@dataclasses.dataclass(frozen=True)
class RunReport:
    """One run, as a report shows it.

    - `name`: its name in tables and figures.
    - `config`, `evaluation`: what `config.json` and `evaluation.json` hold.
    - `metrics`: the rows of `metrics.jsonl`.
    - `intervals`: what `certificate-linf.json` holds, if it is there.
    - `pictures`: attacked images and their trajectories, where there are some.
    """

    name: str
    config: dict[str, Any]
    evaluation: dict[str, Any]
    metrics: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    intervals: dict[str, Any] | None = None
    pictures: Pictures | None = None

    @property
    def seconds(self) -> float | None:
        """Seconds that training took (of the last start, if it was resumed)."""
        return self.metrics[-1]["seconds"] if self.metrics else None


def read_run(run_dir: str | os.PathLike) -> RunReport:
    """Reads a run folder.

    **Arguments:** a folder that `scripts/train.py` and `scripts/evaluate.py` wrote.

    **Returns:** a `RunReport` with the folder's name.

    **Raises:** `FileNotFoundError` for a folder that is not a run or was not evaluated,
    `ValueError` for damaged files.
    """
    run = RunDir(run_dir)
    run.read_config()
    if not (run.path / "evaluation.json").is_file():
        raise FileNotFoundError(
            f"{run.path} has no evaluation.json: "
            f"run scripts/evaluate.py {run.path} first."
        )
    config = _read(run.path / "config.json", json.loads)
    evaluation = _read(run.path / "evaluation.json", json.loads)
    missing = [
        k for k in NEEDED if not isinstance(evaluation, dict) or k not in evaluation
    ]
    if missing:
        raise ValueError(
            f"{run.path / 'evaluation.json'} lacks {', '.join(missing)}: write it anew "
            f"with scripts/evaluate.py {run.path}."
        )
    metrics = []
    if run.metrics.is_file():
        metrics = _read(
            run.metrics, lambda text: [json.loads(line) for line in text.splitlines()]
        )
    intervals = run.path / "certificate-linf.json"
    enclosed = _read(intervals, json.loads) if intervals.is_file() else None
    pictures = None
    if Pictures.path(run.path).is_file():
        pictures = Pictures.load(run.path)
    name = absolute(run.path).name
    return RunReport(name, config, evaluation, metrics, enclosed, pictures)


def _read(path: Path, parse) -> Any:
    try:
        return parse(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def printable(text: str) -> str:
    """The text without surrogate characters, which badly encoded file names contain."""
    return text.encode(errors="replace").decode()


def distinct(runs: Sequence[RunReport]) -> list[RunReport]:
    """The same runs, with those of equal names numbered.

    **Raises:** `ValueError` where there is no run.
    """
    if not runs:
        raise ValueError("runs must hold at least one evaluated run, not none.")
    names = [printable(run.name) or "run" for run in runs]
    result = []
    for i, run in enumerate(runs):
        name = names[i]
        if names.count(name) > 1:
            name = f"{name} ({names[: i + 1].count(name)})"
        result.append(dataclasses.replace(run, name=name))
    return result


@dataclasses.dataclass(frozen=True)
class Line:
    """One measure: its label, a cell for each run, and fractions if it has some."""

    label: str
    cells: list[str]
    shares: list[float | None] | None = None


@dataclasses.dataclass(frozen=True)
class Section:
    """Measures of one kind; the title says what kind of bound they are."""

    title: str
    lines: list[Line]


def percent(value: float | None) -> str:
    """A fraction as `97.1`, or a dash for `None`."""
    return NONE if value is None else f"{100 * value:.1f}"


def budget_label(norm: str, epsilon: float) -> str:
    """`Linf 0.1`, `σ 0.196`."""
    return f"{NORMS.get(norm, norm)} {epsilon:.3g}"


def attack_label(row: dict) -> str:
    """`pgd-40 Linf 0.1`, `pgd-40x5 L2 0.5` with five restarts, `gaussian σ 0.2`.

    And `pgd-40 Linf 0.1 via rk4x8` where it was transferred.
    """
    steps = f"-{row['steps']}" if row["steps"] > 1 else ""
    restarts = f"x{row['restarts']}" if row["restarts"] > 1 else ""
    via = f" via {row['via']}" if row.get("via") else ""
    budget = budget_label(row["norm"], row["epsilon"])
    return f"{row['name']}{steps}{restarts} {budget}{via}"


def sections(runs: Sequence[RunReport]) -> list[Section]:
    """The results of the runs in sections: attacked, worst case, certified, cost."""
    evaluations = [run.evaluation for run in runs]
    alone, left = (
        _align(
            [
                [(attack_label(r), r["robust_accuracy"]) for r in e["attacks"]]
                if bool(e.get("successive")) == successive
                else []
                for e in evaluations
            ]
        )
        for successive in (False, True)
    )
    worst = _align(
        [
            [
                (
                    f"worst case {budget_label(r['norm'], r['epsilon'])}",
                    r["robust_accuracy"],
                )
                for r in sorted(e["worst_case"], key=_order)
                if r["norm"] != "sigma"
            ]
            for e in evaluations
        ]
    )
    radii = worth_showing(runs)
    proven = _align(
        [
            [
                (f"certified L2 {r['radius']:g}", r["certified_accuracy"])
                for r in e["certified_accuracy"]
                if r["radius"] in radii
            ]
            + _enclosed(run)
            for e, run in zip(evaluations, runs, strict=True)
        ]
    )
    found = [
        Section("", [_line("clean", [e["clean_accuracy"] for e in evaluations])]),
        Section("accuracy under attack: empirical upper bound", alone),
        Section("left by one attack after another: empirical upper bound", left),
        Section("robust after all those attacks: empirical upper bound", worst),
        Section("certified accuracy: proven lower bound", proven),
        Section(
            "cost",
            [
                Line("solver", [str(e["solver"]) for e in evaluations]),
                Line("NFE", [f"{e['nfe']:.4g}" for e in evaluations]),
                *_nfe_under_attack(evaluations),
                Line(
                    "training seconds",
                    [NONE if r.seconds is None else f"{r.seconds:.0f}" for r in runs],
                ),
            ],
        ),
    ]
    return [section for section in found if section.lines]


def _enclosed(run: RunReport) -> list[tuple[str, float]]:
    """What intervals certify in Linf, with the number of images if it is not that of
    the evaluation."""
    found, number = run.intervals, run.evaluation["num_examples"]
    if found is None:
        return []
    of = "" if found["num_examples"] == number else f", {found['num_examples']} images"
    return [
        (f"certified {budget_label('linf', r['radius'])}{of}", r["certified_accuracy"])
        for r in found["certified_accuracy"]
    ]


def _nfe_under_attack(evaluations: Sequence[dict]) -> list[Line]:
    """Mean and largest number of evaluations, clean and attacked side by side."""
    found = [e.get("checks", {}).get("nfe", {}) for e in evaluations]
    kinds = {
        "clean": "NFE, clean (mean / largest)",
        "attacked": "NFE, attacked",
        "slowed": "NFE, slowdown attack",
    }
    return [
        Line(
            label,
            [
                f"{work[kind]['nfe']:.4g} / {work[kind]['nfe_largest']}"
                if kind in work
                else NONE
                for work in found
            ],
        )
        for kind, label in kinds.items()
        if any(kind in work for work in found)
    ]


def _line(label: str, shares: list[float | None]) -> Line:
    return Line(label, [percent(share) for share in shares], shares)


def _order(row: dict) -> tuple[bool, str, float]:
    return row["norm"] != "linf", row["norm"], row["epsilon"]


def _align(found: list[list[tuple[str, float]]]) -> list[Line]:
    """One line for each label, in order of appearance; of equal labels the lowest
    counts."""
    labels = dict.fromkeys(label for rows in found for label, _ in rows)
    return [
        _line(
            label,
            [
                min((float(v) for k, v in rows if k == label), default=None)
                for rows in found
            ],
        )
        for label in labels
    ]


def worth_showing(runs: Sequence[RunReport]) -> set[float]:
    """The certified radii to show: those that were attacked too, else the usual ones,
    or all."""
    rows = [r for run in runs for r in run.evaluation["certified_accuracy"]]
    certified = {r["radius"] for r in rows if r["radius"] > 0}
    attacked = {
        r["epsilon"]
        for run in runs
        for r in run.evaluation["attacks"]
        if r["norm"] == "l2"
    }
    return certified & attacked or certified & USUAL_RADII or certified


def table(runs: Sequence[RunReport]) -> str:
    """Clean, attacked and certified accuracy in percent, one row a measure.

    Attacked accuracy is an empirical upper bound on robust accuracy, certified accuracy
    a proven lower bound. Each model is a column, so that it fits a terminal.

    **Arguments:** runs from `read_run`.

    **Returns:** a Markdown table.

    **Raises:** `ValueError` where there is no run.
    """
    runs = distinct(runs)
    blank = [""] * len(runs)
    rows = [["accuracy in %", *(run.name for run in runs)]]
    for section in sections(runs):
        if section.title:
            rows.append([f"**{section.title}**", *blank])
        rows += [[line.label, *line.cells] for line in section.lines]
    rows = [[_plain(cell) for cell in row] for row in rows]
    columns = list(zip(*rows, strict=True))
    widths = [max(3, *(len(cell) for cell in column)) for column in columns]
    rows.insert(1, ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])])
    justify: list[Callable] = [str.ljust, *[str.rjust] * len(runs)]
    lines = [
        [j(cell, width) for j, cell, width in zip(justify, row, widths, strict=True)]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(cell: str) -> str:
    """The text as one line, escaped for a cell of a Markdown table."""
    return " ".join(cell.split()).replace("|", "\\|")
