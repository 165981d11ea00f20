"""The folder of a run: configuration, metrics, model, checkpoints."""

import dataclasses
import json
import operator
import os
import shutil
from pathlib import Path
from typing import Any

from jnode._files import read_tree, write_json
from jnode._lock import lock_name
from jnode._versions import own_version
from jnode.models import ODEClassifier
from jnode.train.checkpoints import Checkpoints
from jnode.train.config import TrainConfig, from_dict
from jnode.train.errors import explained
from jnode.train.state import init_state
from jnode.train.step import empty_tally

FORMAT = 3
"""The number of the run folder's format, the only one that is read."""

CONTENTS = (
    # Training.
    "config.json",
    "metrics.jsonl",
    "model.eqx",
    "checkpoints",
    "damaged",
    "tensorboard",
    "profile",
    # Evaluation and certificates.
    "evaluation",
    "evaluation.json",
    "pictures.npz",
    "certificate.json",
    "certificate.png",
    "certificate-smoothed.json",
    # Reports and studies.
    "report.html",
    "report.md",
    "measured",
    "row.json",
    # Locks.
    lock_name("training"),
    lock_name("evaluation"),
)
"""Everything that the package writes into a run folder, files and folders."""

_LOCKS = tuple(name for name in CONTENTS if name.endswith(".lock"))
# What may lie in a folder before a run is there: a study writes the row of a cell that
# failed too early to leave anything else.
_NO_RUN = (*_LOCKS, "row.json")


class RunDir:
    """The folder of a run.

    It holds `config.json`, `metrics.jsonl`, `model.eqx` once training has ended,
    `checkpoints/`, and what else `CONTENTS` names. Nothing in it can lead a reader or
    writer out of it: it names no other folder, and links that leave it are refused.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.checkpoints = Checkpoints(self.path)

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def check_free(self, *, overwrite: bool) -> None:
        """Raises `FileExistsError` where `create` would."""
        if not self.path.is_dir():
            taken = self.path.exists()
        else:
            taken = any(self.unknown()) or any(
                (self.path / name).exists() for name in CONTENTS if name not in _NO_RUN
            )
        if not taken:
            return
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

    def create(self, *, overwrite: bool) -> None:
        """Makes the folder, or with `overwrite` empties what a run left there.

        What nothing of the package wrote stays there. The row that a study wrote of a
        cell that failed before it began is no run, and no hindrance.

        **Raises:** `FileExistsError` where it holds anything else and `overwrite` is
        off, or where it holds something that no run wrote.
        """
        self.check_free(overwrite=overwrite)
        self.check_links()
        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if not overwrite:
                return
            # Whoever overwrites holds the lock.
            names = [name for name in CONTENTS if name not in _LOCKS]
            for path in [self.path / name for name in names] + self._half_written():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def unknown(self) -> list[Path]:
        """What lies in the folder and was not written by the package."""
        known = {self.path / name for name in CONTENTS} | {*self._half_written()}
        return sorted(path for path in self.path.iterdir() if path not in known)

    def _half_written(self) -> list[Path]:
        """Files that a killed process was writing, beside where they should be."""
        return [
            path
            for path in self.path.glob(".*.tmp")
            if path.name[1:].rsplit(".", 2)[0] in CONTENTS
        ]

    def check_links(self) -> None:
        """Raises `ValueError` where a link would lead out of the folder."""
        root = self.path.resolve()
        for name in CONTENTS:
            target = (self.path / name).resolve()
            if not target.is_relative_to(root):
                raise ValueError(
                    f"{self.path / name} is a link out of the run folder, to "
                    f"{target}: remove it, or put the thing itself there."
                )

    def write_config(self, config: TrainConfig, **facts: Any) -> None:
        """Writes `config.json`: the configuration, and facts about data and machine.

        Without `data.dir`: where the data lie belongs to the machine, not to the run.
        Among the facts may be the `format` of another run that this is made of; by
        default it is `FORMAT`.
        """
        train = dataclasses.asdict(without_paths(config))
        content = {"format": FORMAT, "train": train, **facts}
        with explained(self.path):
            write_json(self.path / "config.json", content)

    def read_config(self) -> tuple[TrainConfig, dict[str, Any]]:
        """The configuration, and the facts written with it, `format` among them.

        A `data.dir` in it is not followed: it is read as `None`.

        **Raises:** `FileNotFoundError` for a folder that is not a run, `ValueError` for
        a damaged `config.json`, another format than `FORMAT`, or links that lead out of
        the folder.
        """
        self.check_links()
        path = self.path / "config.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.path} is not a run folder: it has no config.json. "
                "Train one with scripts/train.py."
            )
        try:
            facts = {"format": 1, **json.loads(path.read_text())}
            number = operator.index(facts["format"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if number != FORMAT:
            age, mend = (
                ("newer", "upgrade jnode")
                if number > FORMAT
                else ("earlier", "train it anew, or read it with that version")
            )
            raise ValueError(
                f"{self.path} was written by an {age} jnode, in format {number}, and "
                f"this version, {own_version()}, reads format {FORMAT}: {mend}."
            )
        try:
            config = without_paths(from_dict(TrainConfig, facts.pop("train")))
            facts["image_shape"] = tuple(facts["image_shape"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        return config, facts


def without_paths(config: TrainConfig) -> TrainConfig:
    """The configuration as a run folder keeps it."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, dir=None))


def load(run_dir: str | os.PathLike, *, best: bool = False) -> ODEClassifier:
    """The trained model of a run, as it was trained: constrained.

    It is ready for `jax.jit(jax.vmap(model))`, `jax.grad` and further training, and
    what is certified of it stays true whatever becomes of its weights. `jnode.resolve`
    gives an equal model that is quicker to call many times.

    **Arguments:** a folder that `scripts/train.py` or `jnode.train.train` wrote;
    whether to take the checkpoint with the lowest training loss in place of the last
    weights (also of a run that has not ended).

    **Returns:** a model that maps one image in [0, 1] to logits. Loading runs no code
    from the folder.

    **Raises:** `FileNotFoundError` for a folder that is not a run or has no trained
    model yet, `ValueError` for a damaged one.
    """
    run = RunDir(run_dir)
    config, facts = run.read_config()
    state = init_state(
        config,
        image_shape=facts["image_shape"],
        classes=facts["classes"],
        total_steps=1,
    )
    if best:
        step = run.checkpoints.best()
        if step is None:
            raise FileNotFoundError(f"{run.path} has no checkpoint of a whole epoch.")
        like = (state, empty_tally(config.loss))
        found = run.checkpoints.restore(like, {}, step)
        assert found is not None
        return found[0][0].model
    path = run.path / "model.eqx"
    if not path.is_file():
        raise FileNotFoundError(
            f"{run.path} has no model.eqx: its training has not ended; continue it "
            "with scripts/train.py --resume."
        )
    return read_tree(path, state.model)
