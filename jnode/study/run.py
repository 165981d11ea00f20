"""Running a study: resumable, by one process or several, and past failures."""

import dataclasses
import json
import os
import shutil
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jnode import data
from jnode._files import as_path, claimed, in_bucket, write_atomic, write_json
from jnode._process import drop_programs_if_many, versions
from jnode._progress import progress_bar
from jnode.models import load, save
from jnode.models.file import DESCRIPTION
from jnode.study.cells import Cell, Subject
from jnode.study.measure import measure
from jnode.train import RunDir, evaluation_images, train
from jnode.train.loop import changed_options
from jnode.train.step import dtype_of, init_state

RESULTS = "results.jsonl"
ROW = "row.json"
SCHEMA = 1
"""The version of the rows' format; the page about studies describes it."""


def run_study(
    cells: Sequence[Cell | Subject],
    folder: str | os.PathLike,
    *,
    data_dir: str | os.PathLike | None = None,
    retry_failed: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Measures all cells, which trains those that are a `Cell`; writes `results.jsonl`.

    Each cell has a folder of its own in there, with a `row.json` when it is done. A
    study that was stopped resumes: trained models and finished cells are not computed
    again. Several processes may work on one folder at once; each takes cells that no
    other is working on. A cell that fails becomes a row with its `error`, and the study
    continues.

    **Arguments:** the cells; the folder; the data folder, if not `TFDS_DATA_DIR`;
    whether to run failed cells again; whether to draw progress bars.

    **Returns:** the rows of all finished cells, in the order of `cells`.

    **Raises:** `TypeError` for something else than a cell; `ValueError` for no cell, a
    folder in a bucket, two cells of the same name, a
    finished row with another configuration, or a damaged `results.jsonl`.
    """
    check_cells(cells)
    folder = as_path(folder)
    if in_bucket(folder):
        raise ValueError(f"folder must be on this machine, not {folder}: it is locked.")
    folder.mkdir(parents=True, exist_ok=True)
    rows = gather(cells, folder)
    with progress_bar(len(cells), show=progress, unit="cell") as bar:
        waiting = list(cells)
        # First the cells that no process is working on, then all others.
        for wait in (False, True):
            later = []
            for cell in waiting:
                bar.set_description(cell.name)
                with claimed(folder / f".{cell.name}.lock", wait=wait) as mine:
                    if not mine:
                        later.append(cell)
                        continue
                    if not _is_done(folder / cell.name, cell, retry_failed):
                        _run(cell, folder, data_dir, progress)
                        drop_programs_if_many()
                rows = gather(cells, folder)
                bar.update()
            waiting = later
    return rows


def check_cells(cells: Sequence[Cell | Subject]) -> None:
    """Raises `TypeError` or `ValueError` unless these can be the cells of a study."""
    for cell in cells:
        if not isinstance(cell, Cell | Subject):
            raise TypeError(
                "cells must hold study.Subject or study.Cell, not "
                f"{type(cell).__name__}."
            )
    if not cells:
        raise ValueError("cells must hold at least one cell, not none.")
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"cells must have names of their own; twice: {twice[0]}.")


def gather(
    cells: Sequence[Cell | Subject], folder: str | os.PathLike
) -> list[dict[str, Any]]:
    """The rows of all finished cells, which are also written to `results.jsonl`.

    Existing rows of other cells, of another study in the same folder, are kept, after
    these.

    **Returns:** the rows of `cells`, in their order.

    **Raises:** `ValueError` if `results.jsonl` is damaged.
    """
    folder = Path(folder)
    ours = {cell.name for cell in cells}
    with claimed(folder / ".results.lock", wait=True):
        paths = [folder / cell.name / ROW for cell in cells]
        rows = [json.loads(path.read_text()) for path in paths if path.is_file()]
        others = _rows_of_others(folder, ours)
        text = "".join(json.dumps(row) + "\n" for row in (*rows, *others))
        write_atomic(folder / RESULTS, lambda file: file.write(text.encode()))
    return rows


def read_rows(paths: Sequence[str | os.PathLike]) -> list[dict[str, Any]]:
    """Reads the rows of studies, from folders with a `results.jsonl`, or from such
    files.

    **Raises:** `FileNotFoundError` for neither, `ValueError` for a damaged file.
    """
    rows = []
    for given in paths:
        path = Path(given)
        path = path / RESULTS if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is not there: run scripts/study.py first, and name its folder."
            )
        try:
            rows += [json.loads(line) for line in path.read_text().splitlines()]
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    return rows


def _rows_of_others(folder: Path, ours: set[str]) -> list[dict[str, Any]]:
    path = folder / RESULTS
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [row for row in rows if row["cell"] not in ours]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): move it away. The rows of this study's "
            "finished cells are in their folders too, and come back."
        ) from error


def _is_done(run_dir: Path, cell: Cell | Subject, retry_failed: bool) -> bool:
    path = run_dir / ROW
    if not path.is_file():
        return False
    row = json.loads(path.read_text())
    if row["settings"] != _settings(cell):
        raise ValueError(
            f"{path} was measured with other settings than the study has now: move "
            f"{run_dir} away, or choose another folder."
        )
    return row["error"] is None or not retry_failed


def _settings(cell: Cell | Subject) -> dict[str, Any]:
    """All settings that a row depends on, as JSON returns them; no paths."""
    if isinstance(cell, Subject):
        return cell.settings()
    placed = dataclasses.replace(cell.train.data, dir=None)
    config = dataclasses.replace(cell.train, data=placed)
    settings = dataclasses.asdict(dataclasses.replace(cell, train=config))
    return json.loads(json.dumps(settings))


def _run(cell: Cell | Subject, folder: Path, data_dir, progress: bool) -> None:
    """Trains if needed, measures, and writes the row."""
    run_dir = folder / cell.name
    start = time.perf_counter()
    row: dict[str, Any] = {"schema": SCHEMA, "cell": cell.name, **_labels(cell)}
    row["error"] = None
    try:
        if isinstance(cell, Cell):
            row |= _trained(cell, folder, data_dir, progress)
            subject = _subject(cell, folder, data_dir)
        else:
            subject = cell
        row |= measure(subject, run_dir, progress=progress)
    except Exception as error:
        # KeyboardInterrupt and SIGTERM are not failures of the cell: they propagate.
        row["error"] = f"{type(error).__name__}: {error}"
        row["traceback"] = traceback.format_exc()
        tqdm.write(f"{cell.name} failed: {row['error']}")
    run_dir.mkdir(exist_ok=True)  # without attacks nothing was written there
    row["seconds"] = round(time.perf_counter() - start, 1)
    row["versions"] = versions()
    row["settings"] = _settings(cell)
    write_json(run_dir / ROW, row)


def _labels(cell: Cell | Subject) -> dict[str, Any]:
    """How a cell is called in tables."""
    if isinstance(cell, Subject):
        names = {"dataset": cell.dataset, "solver": cell.solver}
        return {"part": "own", "model": cell.name, **names}
    return {
        "part": cell.part,
        "dataset": cell.train.data.name,
        "model": cell.model,
        "training": cell.training,
        "seed": cell.train.seed,
        "trained_with": str(cell.train.solver),
        "solver": str(cell.evaluated),
        "solver_name": cell.evaluated.name,
    }


def _subject(cell: Cell, folder: Path, data_dir) -> Subject:
    """The trained model of a cell, with the cell's solver, and its test images."""
    if cell.solver is not None:
        _derive(cell, folder)
    model, via = load(folder / cell.name), cell.measures.via
    test = evaluation_images(cell.train.data, data_dir)
    images = np.asarray(data.to_float(jnp.asarray(test.images), dtype_of(model)))
    surrogates = {}
    if via not in (None, cell.evaluated):
        surrogates[str(via)] = model.bake().with_solver(via)
    return Subject(
        cell.name,
        model,
        images,
        test.labels,
        cell.measures,
        solver=str(cell.evaluated),
        dataset=test.name,
        surrogates=surrogates,
    )


def _trained(cell: Cell, folder: Path, data_dir, progress: bool) -> dict[str, Any]:
    """Trains the run that the cell shares with others, unless it exists."""
    run = RunDir(folder / cell.trained)
    placed = dataclasses.replace(cell.train.data, dir=data_dir)
    config = dataclasses.replace(cell.train, data=placed)
    with claimed(folder / f".{cell.trained}.training.lock", wait=True):
        if (run.path / DESCRIPTION).is_file():
            if changed := changed_options(run, config):
                raise ValueError(
                    f"{run.path} was trained with another configuration: "
                    f"{'; '.join(changed)}. Choose another folder for this study."
                )
        else:
            resume = (run.path / "config.json").is_file()
            train(config, run.path, resume=resume, progress=progress)
            shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    *before, last = (json.loads(x) for x in run.metrics.read_text().splitlines())
    _, facts = run.read_config()
    return {
        "num_train": facts["num_train"],
        "epochs": last["epoch"],
        "loss_fall": 1 - last["loss"] / before[-1]["loss"] if before else None,
        "training_seconds": round(last["seconds"], 1),
        "images_per_second": round(last["images_per_second"]),
        "parameters": _parameters(cell, facts),
    }


def _parameters(cell: Cell, facts: dict[str, Any]) -> int:
    """The number of trained parameters; baked models hold more numbers."""
    sizes = {name: facts[name] for name in ("image_shape", "classes")}
    model = jax.eval_shape(lambda: init_state(cell.train, **sizes, total_steps=1).model)
    # Shapes in place of arrays, for which Equinox's filters do not hold.
    leaves = [x for x in jax.tree.leaves(model) if hasattr(x, "dtype")]
    return sum(x.size for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact))


def _derive(cell: Cell, folder: Path) -> None:
    """Makes a run folder with the trained weights and the cell's solver."""
    trained, derived = RunDir(folder / cell.trained), RunDir(folder / cell.name)
    config, facts = trained.read_config()
    config = dataclasses.replace(config, solver=cell.evaluated)
    if not (derived.path / "config.json").is_file():
        derived.create(overwrite=False)
    derived.write_config(config, **{**facts, "trained_in": trained.path.name})
    sizes = {"image_shape": facts["image_shape"], "classes": facts["classes"]}
    model = load(trained.path)
    save(derived.path, model, config.model, cell.evaluated, **sizes)
    shutil.copyfile(trained.metrics, derived.metrics)
