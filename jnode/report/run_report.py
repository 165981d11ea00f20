"""What a report knows of one run: plain data, read from its folder."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jnode.report.pictures import Pictures
from jnode.train.run_dir import RunDir

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

    - `name`: how tables and figures call it.
    - `config`, `evaluation`: what `config.json` and `evaluation.json` hold.
    - `metrics`: the rows of `metrics.jsonl`.
    - `pictures`: attacked images and their trajectories, where there are some.
    """

    name: str
    config: dict[str, Any]
    evaluation: dict[str, Any]
    metrics: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    pictures: Pictures | None = None

    @property
    def seconds(self) -> float | None:
        """Seconds that training took (of the last start, if it was resumed)."""
        return self.metrics[-1]["seconds"] if self.metrics else None


def read_run(run_dir: str | os.PathLike) -> RunReport:
    """Reads a run folder.

    **Arguments:** a folder that `scripts/train.py` and `scripts/evaluate.py` wrote.

    **Returns:** a `RunReport`, called as the folder is.

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
    pictures = None
    if Pictures.path(run.path).is_file():
        pictures = Pictures.load(run.path)
    name = run.path.resolve().name
    return RunReport(name, config, evaluation, metrics, pictures)


def _read(path: Path, parse) -> Any:
    try:
        return parse(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def printable(text: str) -> str:
    """Without the halves of characters that badly encoded file names hold."""
    return text.encode(errors="replace").decode()


def distinct(runs: Sequence[RunReport]) -> list[RunReport]:
    """The same runs, those of one name numbered, so that nobody mixes them up.

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
