"""Studies: their cells, how they are run past failures, and what is told of them."""

import dataclasses
import json
import re
import sys

import equinox as eqx
import jax
import pytest

import jnode
from jnode import study
from jnode._files import claimed
from jnode.models import ModelConfig
from jnode.solvers import Solver
from jnode.study import Cell, Measures, run, run_study, write_study
from jnode.study.cells import PARTS
from jnode.study.report import figures, pareto
from jnode.study.tables import amount, spread, tables
from jnode.train import DataConfig, RunDir, TrainConfig
from jnode.train.step import init_state
from tests.test_scripts import script

TINY = TrainConfig(
    data=DataConfig(num_train=64),
    model=ModelConfig(field="gradient_flow", lipschitz=4.0, features=16),
    solver=Solver("euler", steps=2),
    epochs=1,
    batch_size=32,
)
MEASURES = Measures(
    ("gaussian:0.2", "pgd:linf:0.1:2"),
    20,
    via=Solver("rk4", steps=2),
    budgets=(),
    radii=(0.5,),
)
GOOD = Cell("models", "flow", "natural", TINY, MEASURES)
SOLVED = dataclasses.replace(
    GOOD, part="solvers", solver=Solver("rk4", steps=1), measures=MEASURES
)
BAD = dataclasses.replace(
    GOOD, model="bad", train=dataclasses.replace(TINY, batch_size=65)
)


@pytest.mark.parametrize("name", study.STUDIES)
def test_declared_studies(name):
    cells = study.STUDIES[name]()
    names = [cell.name for cell in cells]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[\w.\-]+", name) for name in names)
    assert {cell.part for cell in cells} <= set(PARTS)


def test_models_are_matched_in_parameters():
    counts = {}
    for model in study.MODELS:
        config = study.configure(model, "natural", DataConfig(), channels=1, epochs=1)
        sizes = {"image_shape": (28, 28, 1), "classes": 10, "total_steps": 1}
        state = jax.eval_shape(lambda c=config, s=sizes: init_state(c, **s))
        leaves = jax.tree.leaves(eqx.filter(state.model, lambda x: x is not None))
        counts[model] = sum(x.size for x in leaves if hasattr(x, "size"))
    # The skew field has one map where the others have two.
    like = {k: v for k, v in counts.items() if k != "skew"}
    assert max(like.values()) <= 1.03 * min(like.values())
    with pytest.raises(ValueError, match="must be one of cnn"):
        study.configure("vgg", "natural", DataConfig(), channels=1, epochs=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Cells that all failed before their runs began, the data being absent, and were
    tried again."""
    folder, cells = tmp_path_factory.mktemp("study"), [GOOD, SOLVED, BAD]

    def absent(*args, **kwargs):
        raise FileNotFoundError("the data are not prepared")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jnode.data, "load", absent)
        rows = run_study(cells, folder, progress=False)
    words = "FileNotFoundError: the data are not prepared"
    assert [row["error"] for row in rows] == [words] * 3
    assert run_study(cells, folder, progress=False) == rows  # unasked nothing is
    cells = [GOOD, BAD, SOLVED]
    with jax.numpy_dtype_promotion("standard"):  # for Optax
        return folder, run_study(cells, folder, progress=False, retry_failed=True)


@pytest.mark.slow
def test_a_run_folder_holds_nothing_unknown(finished):
    folder, _ = finished
    for cell in (GOOD, BAD, SOLVED):
        assert RunDir(folder / cell.name).unknown() == []
        assert (folder / cell.name / "row.json").is_file()


def test_studies_in_one_folder_keep_each_others_rows(tmp_path):
    def finish(cell):
        (tmp_path / cell.name).mkdir()
        row = {"cell": cell.name, "error": None}
        (tmp_path / cell.name / "row.json").write_text(json.dumps(row))

    def names(rows):
        return [row["cell"] for row in rows]

    finish(GOOD)
    assert names(run.gather([GOOD, BAD], tmp_path)) == [GOOD.name]
    finish(SOLVED)
    assert names(run.gather([SOLVED], tmp_path)) == [SOLVED.name]
    assert names(study.read_rows([tmp_path])) == [SOLVED.name, GOOD.name]
    finish(BAD)
    assert names(run.gather([GOOD, BAD], tmp_path)) == [GOOD.name, BAD.name]
    assert sorted(names(study.read_rows([tmp_path]))) == sorted(
        cell.name for cell in (GOOD, BAD, SOLVED)
    )
    (tmp_path / "results.jsonl").write_text('{"cell": ')
    with pytest.raises(ValueError, match=r"results\.jsonl is damaged .* move it away"):
        run.gather([GOOD], tmp_path)
    (tmp_path / "results.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match=r"results\.jsonl is damaged"):
        run_study([GOOD], tmp_path, progress=False)


@pytest.mark.slow
def test_a_failed_cell_stops_no_other(finished):
    folder, rows = finished
    assert [row["cell"] for row in rows] == [c.name for c in (GOOD, BAD, SOLVED)]
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert "batch_size must be at most the 64" in rows[1]["error"]
    good, _, solved = rows
    assert good["num_test"] == 1000 and good["num_train"] == 64
    assert {a["name"] for a in good["alone"]["attacks"]} == {"gaussian", "pgd"}
    assert good["alone"]["attacks"][-1]["via"] == "rk4x2"
    # The same weights under another solver.
    assert solved["trained_with"] == "eulerx2" and solved["solver"] == "rk4x1"
    assert (good["nfe"], solved["nfe"]) == (2, 4)
    assert str(jnode.load(folder / SOLVED.name).solver) == "rk4x1"
    lines = (folder / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows


@pytest.mark.slow
def test_a_study_goes_on_where_it_was(finished, monkeypatch):
    folder, rows = finished
    tried = []
    monkeypatch.setattr(run, "_run", lambda cell, *_: tried.append(cell.name))
    assert run_study([GOOD, BAD, SOLVED], folder, progress=False) == rows
    assert tried == []
    run_study([GOOD, BAD, SOLVED], folder, progress=False, retry_failed=True)
    assert tried == [BAD.name]
    other = dataclasses.replace(GOOD, train=dataclasses.replace(TINY, epochs=2))
    with pytest.raises(ValueError, match="measured with other settings"):
        run_study([other], folder, progress=False)
    with pytest.raises(ValueError, match="names of their own"):
        run_study([GOOD, GOOD], folder, progress=False)


@pytest.mark.slow
def test_single_attacks_outlive_a_stop(finished, monkeypatch):
    """As the run folder holds one evaluation, they are kept beside it."""
    folder, (good, *_) = finished
    module = sys.modules["jnode.study.measure"]
    monkeypatch.delattr(module, "evaluate_run")
    assert module.measure(GOOD, folder / GOOD.name)["alone"] == good["alone"]


def test_processes_share_the_cells(tmp_path, monkeypatch):
    """A cell that another process is at comes last, when that one is done."""
    order = []

    def made(cell, folder, *_):
        if not order:  # as if a second process were to start now
            with claimed(folder / f".{cell.name}.lock", wait=False) as mine:
                assert not mine
        order.append(cell.name)
        (folder / cell.name).mkdir()
        row = {"cell": cell.name, "error": None, "settings": run._settings(cell)}
        text = json.dumps(row)
        (folder / cell.name / "row.json").write_text(text)

    monkeypatch.setattr(run, "_run", made)
    rows = run_study([GOOD, BAD], tmp_path, progress=False)
    assert order == [GOOD.name, BAD.name] and len(rows) == 2


def row(part, model, seed=0, **more):
    attack = {"name": "pgd", "norm": "linf", "epsilon": 0.1, "steps": 20, "restarts": 1}
    alone = [{**attack, "via": via, "robust_accuracy": 0.5} for via in ("", "rk4x32")]
    worst = [{"norm": "linf", "epsilon": 0.1, "robust_accuracy": 0.4 + 0.1 * seed}]
    seen = {"num_examples": 100, "clean_accuracy": 1.0, "flags": []}
    return {
        "cell": f"{part}-{model}-{seed}",
        "part": part,
        "dataset": "mnist5k",
        "model": model,
        "training": "natural",
        "seed": seed,
        "trained_with": "eulerx1",
        "solver": "eulerx2",
        "solver_name": "euler",
        "error": None,
        "num_train": 4000,
        "num_test": 1000,
        "epochs": 2,
        "training_seconds": 3.0,
        "parameters": 1234,
        "clean_accuracy": 0.9 + 0.02 * seed,
        "certified_accuracy": [{"norm": "l2", "radius": 0.5, "certified_accuracy": 0}],
        "nfe": 2.0,
        "ms_per_image": 0.1,
        "adaptive": {"solver": "dopri5", "nfe": 20.0},
        "tightness": {"certified_upper_bound": 2.0, "empirical_lower_bound": 1.5},
        "alone": {**seen, "attacks": alone, "worst_case": worst},
        "ensemble": {**seen, "attacks": [], "worst_case": worst},
        **more,
    }


def test_tables_and_figures(tmp_path):
    rows = [row(part, "ortho-L1", seed) for part in PARTS for seed in (0, 1)]
    rows.append({**row("models", "bad"), "error": "ValueError: a | b\nc"})
    told = {table.title: table.markdown() for table in tables(rows)}
    assert len(told) == len(PARTS) + 1
    assert "| 91.0 ± 1.0 |" in told["Models on mnist5k"]
    assert "| 45.0 ± 5.0 |" in told["Models on mnist5k"]
    assert "trained on 4,000 for 2 epochs" in told["Models on mnist5k"]
    assert "a \\| b c" in told["Failed"]
    assert all(figure.axes for figure in figures(rows).values())
    page = write_study(rows, tmp_path, "small")
    assert page.read_text().count("<img ") == len(PARTS)
    assert (tmp_path / "small.md").read_text().count("**") == 2 * len(told)
    assert (tmp_path / "small-solvers-mnist5k.png").read_bytes()[:4] == b"\x89PNG"
    done = script("report.py", write_rows(tmp_path, rows))
    assert "Models on mnist5k" in done.stdout
    with pytest.raises(ValueError, match="at least one finished cell"):
        write_study([], tmp_path, "none")


def write_rows(folder, rows):
    path = folder / "results.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_small_pieces():
    assert [amount(x) for x in (0.1, 8 / 255, 0.5, 36 / 255, 1.0)] == [
        "0.1",
        "8/255",
        "0.5",
        "36/255",
        "1",
    ]
    assert spread([None], str) == "–" and spread([1.0, 3.0], str) == "2.0 ± 1.0"
    slow = row("solvers", "m", seed=1, ms_per_image=2.0)
    fast = row("solvers", "m", seed=0, ms_per_image=1.0)
    useless = row("solvers", "m", seed=0, ms_per_image=3.0)
    assert pareto([useless, slow, fast], "linf", 0.1) == [fast, slow]


def test_a_dry_run_names_the_cells_and_runs_nothing(tmp_path):
    done = script("study.py", "small", tmp_path / "none", "--dry-run")
    cells = study.STUDIES["small"]()
    assert all(cell.name in done.stdout for cell in cells)
    trained = len({cell.trained for cell in cells})
    assert f"{len(cells)} cells, of {trained} trained models" in done.stdout
    assert not (tmp_path / "none").exists()


def test_script_refuses_nonsense(tmp_path):
    done = script("study.py", "large", tmp_path, check=False)
    assert done.returncode == 2 and "study must be one of small" in done.stderr
