"""The folder of a run: configuration, metrics, model, checkpoints."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from jnode.models import ODEClassifier
from jnode.train.config import TrainConfig, from_dict
from jnode.train.files import read_tree, write_json, write_tree
from jnode.train.state import TrainState, init_state

KEEP = 2  # checkpoints: the newest, and the one before should that be damaged
CONTENTS = (
    "config.json",
    "metrics.jsonl",
    "model.eqx",
    "evaluation.json",
    "report.html",
    "pictures.npz",
    "certificate.json",
    "certificate.png",
    "certificate-smoothed.json",
)


class RunDir:
    """The folder of a run.

    It holds `config.json`, `metrics.jsonl`, `model.eqx` once training has ended, and
    `checkpoints/`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def create(self, *, overwrite: bool) -> None:
        """Makes the folder, or empties what a run left there.

        **Raises:** `FileExistsError` where it holds anything and `overwrite` is off, or
        where it holds something that no run wrote.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            if not overwrite:
                raise FileExistsError(
                    f"{self.path} exists already: continue it with --resume, replace "
                    "it with --overwrite, or choose another folder."
                )
            if not (self.path / "config.json").is_file():
                raise FileExistsError(
                    f"{self.path} is not a run folder, so --overwrite leaves it alone: "
                    "choose another folder."
                )
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
            for name in CONTENTS:
                (self.path / name).unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)

    def write_config(self, config: TrainConfig, **facts: Any) -> None:
        """Writes `config.json`: the configuration, and facts about data and machine."""
        content = {"train": dataclasses.asdict(config), **facts}
        write_json(self.path / "config.json", content)

    def read_config(self) -> tuple[TrainConfig, dict[str, Any]]:
        """The configuration, and the facts written with it.

        **Raises:** `FileNotFoundError` for a folder that is not a run, `ValueError` for
        a damaged `config.json`.
        """
        path = self.path / "config.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.path} is not a run folder: it has no config.json. "
                "Train one with scripts/train.py."
            )
        try:
            facts = json.loads(path.read_text())
            config = from_dict(TrainConfig, facts.pop("train"))
            facts["image_shape"] = tuple(facts["image_shape"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        return config, facts

    def checkpoints(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        folder = self.path / "checkpoints"
        named = re.compile(r"step_\d{9}\.eqx")
        if not folder.is_dir():
            return []
        return sorted(p for p in folder.iterdir() if named.fullmatch(p.name))

    def write_checkpoint(self, state: TrainState) -> Path:
        """Writes a checkpoint, then drops all but the newest two."""
        folder = self.path / "checkpoints"
        folder.mkdir(exist_ok=True)
        path = folder / f"step_{int(state.step):09d}.eqx"
        write_tree(path, state)
        for old in self.checkpoints()[:-KEEP]:
            old.unlink(missing_ok=True)
        return path

    def read_checkpoint(self, like: TrainState) -> TrainState | None:
        """The newest checkpoint that can be read, or `None` where there is none.

        **Raises:** `ValueError` where there are some and none can be read.
        """
        error = None
        for path in reversed(self.checkpoints()):
            try:
                return read_tree(path, like)
            except ValueError as e:
                print(f"{e} Falling back to the checkpoint before.")
                error = e
        if error is not None:
            raise error
        return None


def load(run_dir: str | os.PathLike) -> ODEClassifier:
    """The trained model of a run, baked: ready for `jax.jit(jax.vmap(model))`.

    **Arguments:** a folder that `scripts/train.py` or `jnode.train.train` wrote.

    **Returns:** a model that maps one image in [0, 1] to logits. Loading runs no code
    from the folder.

    **Raises:** `FileNotFoundError` for a folder that is not a run or has no trained
    model yet, `ValueError` for a damaged one.
    """
    run = RunDir(run_dir)
    config, facts = run.read_config()
    path = run.path / "model.eqx"
    if not path.is_file():
        raise FileNotFoundError(
            f"{run.path} has no model.eqx: its training has not ended; continue it "
            "with scripts/train.py --resume."
        )
    state = init_state(
        config,
        image_shape=facts["image_shape"],
        classes=facts["classes"],
        total_steps=1,
    )
    return read_tree(path, state.model).bake()
