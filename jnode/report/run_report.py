"""What a report knows of one run: plain data, read from its folder."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jnode.train.run_dir import RunDir

PICTURES = "pictures.npz"


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Clean and attacked images, and how far their trajectories part.

    `distances` is ‖y(t) − z(t)‖ of each pair at `times`; the envelopes bound its growth
    for the exact flow (`inf` where nothing is known).
    """

    attack: str
    clean: Float[np.ndarray, "pairs height width channels"]
    adversarial: Float[np.ndarray, "pairs height width channels"]
    labels: Int[np.ndarray, " pairs"]
    clean_predictions: Int[np.ndarray, " pairs"]
    adversarial_predictions: Int[np.ndarray, " pairs"]
    times: Float[np.ndarray, " times"]
    distances: Float[np.ndarray, "pairs times"]
    gronwall: Float[np.ndarray, " times"]
    log_norm: Float[np.ndarray, " times"]

    def save(self, run_dir: str | os.PathLike) -> None:
        """Writes `pictures.npz` into a run folder."""
        np.savez_compressed(Path(run_dir) / PICTURES, **vars(self))


@dataclasses.dataclass(frozen=True)
class RunReport:
    """One run, as a report shows it."""

    name: str
    config: dict[str, Any]
    evaluation: dict[str, Any]
    metrics: list[dict[str, Any]]
    pictures: Pictures | None

    @property
    def seconds(self) -> float:
        """Seconds that training took (of the last start, if it was resumed)."""
        return self.metrics[-1]["seconds"] if self.metrics else 0.0


def read_run(run_dir: str | os.PathLike) -> RunReport:
    """Reads a run folder.

    **Raises:** `FileNotFoundError` for a folder that is not a run or was not evaluated,
    `ValueError` for damaged files.
    """
    run = RunDir(run_dir)
    run.read_config()
    path = run.path / "evaluation.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{run.path} has no evaluation.json: "
            f"run scripts/evaluate.py {run.path} first."
        )
    try:
        evaluation = json.loads(path.read_text())
        config = json.loads((run.path / "config.json").read_text())
        lines = run.metrics.read_text().splitlines() if run.metrics.exists() else []
        metrics = [json.loads(line) for line in lines]
        pictures = None
        if (run.path / PICTURES).is_file():
            with np.load(run.path / PICTURES, allow_pickle=False) as file:
                pictures = Pictures(**{k: file[k] for k in file if k != "attack"},
                                    attack=str(file["attack"]))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{run.path} holds a damaged file: {error}") from error
    return RunReport(run.path.name, config, evaluation, metrics, pictures)
