"""Studies: their cells, how they are run past failures, and what is told of them."""

import dataclasses
import json
import re
import runpy
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode import study
from jnode._files import claimed
from jnode.models import ModelConfig
from jnode.solvers import Solver
from jnode.study import (
    Cell,
    Measures,
    Subject,
    pareto,
    pareto_figure,
    run,
    run_study,
    write_study,
)
from jnode.study.cells import PARTS
from jnode.study.measure import packed
from jnode.study.report import figures
from jnode.study.tables import amount, spread, tables
from jnode.train import DataConfig, RunDir, TrainConfig
from jnode.train.step import init_state
from tests.helpers import small_model
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


PLANS = Path(__file__).parent.parent / "scripts" / "plans"


@pytest.mark.parametrize("plan", sorted(PLANS.glob("*.py")), ids=lambda path: path.stem)
def test_declared_studies(plan):
    cells = runpy.run_path(str(plan))["cells"]
    names = [cell.name for cell in cells]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[\w.\-]+", name) for name in names)
    assert {cell.part for cell in cells} <= set(PARTS)


def test_a_field_and_its_constraint_are_matched_in_parameters():
    counts = {}
    for model in study.MODELS:
        config = study.configure(model, "natural", DataConfig(), channels=1, epochs=1)
        sizes = {"image_shape": (28, 28, 1), "classes": 10, "total_steps": 1}
        state = jax.eval_shape(lambda c=config, s=sizes: init_state(c, **s))
        leaves = jax.tree.leaves(eqx.filter(state.model, lambda x: x is not None))
        counts[model] = sum(x.size for x in leaves if hasattr(x, "size"))
    assert counts["free"] == counts["ortho"]
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
    sizes: dict = {"image_shape": (28, 28, 1), "classes": 10, "key": jr.key(0)}
    model = jnode.build(TINY.model, TINY.solver, **sizes)
    arrays = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    assert good["parameters"] == sum(x.size for x in arrays)
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
def test_attacks_outlive_a_stop(finished, monkeypatch):
    folder, (good, *_) = finished
    module = sys.modules["jnode.study.measure"]
    subject = run._subject(GOOD, folder, None)

    def stopped(*_):
        raise KeyboardInterrupt

    # What is finished is read: an attack that ran again would raise.
    monkeypatch.setattr(jnode.attacks.PGD, "search", stopped)
    again = module.measure(subject, folder / GOOD.name, progress=False)["alone"]
    assert again["worst_case"] == good["alone"]["worst_case"]


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


@pytest.mark.slow
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
    assert pareto([useless, slow, fast]) == [fast, slow]
    assert pareto([useless, slow, fast], ("linf", 0.1)) == [fast, slow]
    with pytest.raises(ValueError, match="none was"):
        pareto([])


def test_a_dry_run_names_the_cells_and_runs_nothing(tmp_path):
    done = script("study.py", "small", tmp_path / "none", "--dry-run")
    cells = runpy.run_path(str(PLANS / "small.py"))["cells"]
    assert all(cell.name in done.stdout for cell in cells)
    trained = len({cell.trained for cell in cells})
    assert f"{len(cells)} cells, of {trained} trained models" in done.stdout
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_script_refuses_nonsense(tmp_path):
    done = script("study.py", "large", tmp_path, check=False)
    assert done.returncode == 2 and "study must be one of cifar10" in done.stderr
    plan = tmp_path / "plan.py"
    for text, words in (
        ("cells = 3", "must define cells"),
        ("cells = []", "at least one cell"),
        ("cells = [3]", "cells must hold study.Subject or study.Cell, not int"),
        ("import sys\n\nimport foo", "plan.py, line 3: No module named 'foo'"),
    ):
        plan.write_text(text)
        done = script("study.py", plan, tmp_path / "out", check=False)
        assert done.returncode == 2 and words in done.stderr
    done = script("study.py", tmp_path / "no.py", tmp_path / "out", check=False)
    assert done.returncode == 2 and "name the file of a plan" in done.stderr


def linear(image):
    """Two logits that differ by twice the first pixel less 1: L = 1 in L2."""
    found = jnp.stack([image[0, 0, 0] - 0.5, 0.5 - image[0, 0, 0]]) / 2**0.5
    return found, 3


GIVEN = {
    "images": np.linspace(0, 1, 11, dtype=np.float32).reshape(-1, 1, 1, 1),
    "labels": np.asarray([1] * 5 + [0] * 6),
}


def test_a_function_is_measured(tmp_path):
    """Its certificate is exact, and PGD finds what is not certified."""
    measures = Measures(("pgd:l2:0.25:5",), 11, radii=(0.25,))
    one = Subject(
        "given",
        linear,
        **GIVEN,
        measures=measures,
        lipschitz=1.0,
        surrogates={
            "itself": lambda image: linear(image)[0],
            "opposite": lambda image: -linear(image)[0],
        },
    )
    (row,) = rows = run_study([one], tmp_path, progress=False)
    assert row["error"] is None and row["schema"] == 1
    assert (row["nfe"], row["nfe_largest"]) == (3.0, 3)
    # All are right, the middle one by a tie; the pixels 0, 0.1, 0.2, 0.8, 0.9 and 1 are
    # at least 0.25 away from it.
    assert row["clean_accuracy"] == pytest.approx(1)
    (proven,) = row["certified_accuracy"]
    (robust,) = row["robust"]
    assert proven["certified_accuracy"] == pytest.approx(6 / 11)
    assert robust["robust_accuracy"] == pytest.approx(6 / 11)
    assert robust["num_examples"] == 11
    low, high = robust["interval"]
    assert low < 6 / 11 < high
    vias = {entry["via"] for entry in row["alone"]["attacks"]}
    assert vias == {"", "itself", "opposite"}
    # Equal logits, of the pixel 0.5, are the first class of both.
    assert row["disagreement"] == {"itself": 0, "opposite": pytest.approx(10 / 11)}
    assert run_study([one], tmp_path, progress=False) == rows  # read, not measured
    hidden = lambda image: jax.lax.stop_gradient(linear(image)[0])
    for other in (
        {"model": lambda image: 2 * linear(image)[0]},
        {"model": hidden},  # the same answers, without gradients
        {"surrogates": {**one.surrogates, "itself": hidden}},
    ):
        with pytest.raises(ValueError, match="measured with other settings"):
            run_study([dataclasses.replace(one, **other)], tmp_path, progress=False)
    assert pareto(rows) == rows and pareto_figure(rows).axes
    (table,) = tables(rows)
    assert "54.5 [28.0, 78.7]" in table.markdown()


def test_rows_are_compared_image_by_image(tmp_path):
    """Robust are images 0, 1, 2, 8, 9, 10 of one model, and 0 to 4 of the other."""
    measures = Measures(("pgd:l2:0.25:5",), 11)
    constant = lambda image: jnp.asarray([0.0, 1.0]) + 0 * jnp.sum(image)
    models = {"linear": lambda x: linear(x)[0], "constant": constant}
    cells = [
        Subject(name, model, **GIVEN, measures=measures)
        for name, model in models.items()
    ]
    first, second = run_study(cells, tmp_path, progress=False)
    found = study.paired(first, second)
    assert (found["only_first"], found["only_second"]) == (6, 0)
    assert found["p_value"] == pytest.approx(2 / 2**6)
    assert found["difference"] == pytest.approx(6 / 11)
    found = study.paired(first, second, ("l2", 0.25))
    assert (found["only_first"], found["only_second"]) == (3, 2)
    assert found["p_value"] == pytest.approx(1)
    assert study.paired(first, first)["p_value"] == 1
    (table,) = study.orders([second, first])
    assert table.rows == [
        ["own images", "clean", "linear ≈ constant"],
        ["own images", "L2 0.25", "linear ≈ constant"],
    ]
    with pytest.raises(ValueError, match="budget must be one at which linear"):
        study.paired(first, second, ("l2", 0.5))
    with pytest.raises(ValueError, match="must be of the same images"):
        study.paired(first, second | {"data": "others"})
    with pytest.raises(ValueError, match="and given does not: it failed"):
        study.paired({"cell": "given", "error": "no"}, second)


def test_an_order_is_claimed_only_where_it_is_certain():
    """Of 40 images b gets 8 fewer than a, which is certain, and c one fewer than b."""

    def made(model, number, seed=0, training="natural"):
        right = packed(np.arange(40) < number)
        seen = {"right": right, "num_test": 40, "data": "these"}
        seen |= {"alone": {}, "ensemble": {}}
        return row("models", model, seed, training=training, **seen)

    rows = [made("c", 31), made("a", 40), made("b", 32), made("a", 0, seed=1)]
    (table,) = study.orders([*rows, made("a", 30, training="margin")])
    clean = {line[0]: line[2] for line in table.rows if line[1] == "clean"}
    assert clean["mnist5k, natural"] == "a > b ≈ c"
    assert clean["mnist5k, a"] == "natural > margin"
    assert study.orders([row("models", "old")]) == []


def test_rows_that_were_attacked_less_are_not_compared():
    """AutoAttack leaves 10 of 40 images of a; FGSM alone leaves 38 of b."""

    def made(model, number, **more):
        budget = {"norm": "linf", "epsilon": 0.2, "robust_accuracy": number / 40}
        right = packed(np.arange(40) < number)
        robust = [budget | {"right": right, "num_examples": 40, "interval": [0, 1]}]
        seen = {"num_examples": 40, "worst_case": [budget], "flags": []}
        tried = {"norm": "linf", "epsilon": 0.2, "restarts": 1, "via": ""}
        tried |= {"robust_accuracy": number / 40}
        parts = {
            part: seen | {"attacks": [tried | {"name": name, "steps": steps}]}
            for part, name, steps in (("alone", "fgsm", 1), ("ensemble", "square", 9))
        }
        found = row("models", model, **{"num_test": 40, "data": "x", "robust": robust})
        return found | {"right": packed(np.ones(40, bool))} | parts | more

    a, b, c = made("a", 10), made("b", 38), made("c", 9)
    del b["ensemble"]
    (table,) = tables([a, b, c])
    column = table.head.index("AutoAttack Linf 0.2")
    assert [line[column] for line in table.rows] == ["25.0", "–", "22.5"]
    (alone,) = tables([b])
    assert not any("AutoAttack" in name for name in alone.head)
    assert study.paired(a, c, ("linf", 0.2))["only_first"] == 1
    with pytest.raises(ValueError, match="square-9 Linf 0.2 and of fgsm Linf 0.2"):
        study.paired(a, b, ("linf", 0.2))
    (ordered,) = study.orders([a, b, c])
    assert [line[2] for line in ordered.rows] == ["c ≈ b ≈ a", "a ≈ c"]
    b["ms_per_image"] = 0.01
    assert pareto([a, b, c]) == [a]


def test_solvers_are_compared_with_their_reference():
    """Of 40 images Euler gets 8 fewer than the finest solver, which is certain, and
    Heun one fewer; what a model was trained with is the reference of other steps."""

    def made(part, solver, number, via):
        seen = {"right": packed(np.arange(40) < number), "num_test": 40, "data": "x"}
        seen |= {"alone": {}, "ensemble": {}, "solver": solver}
        return row(part, "m", **seen, disagreement={"rk4x16": 0.1} if via else {})

    rows = [
        made("solvers", "eulerx1", 30, True),
        made("solvers", "heunx1", 37, True),
        made("solvers", "rk4x16", 38, False),
        made("steps", "eulerx1", 30, True),
        made("steps", "eulerx2", 38, True),
    ]
    (table,) = study.solvers_compared(rows)
    assert table.rows == [
        ["m, rk4x16", "clean", "–", "eulerx1 (-20.0)"],
        ["m, eulerx1", "clean", "eulerx2 (+20.0)", "–"],
    ]
    assert study.solvers_compared([row("solvers", "old")]) == []


def test_a_run_of_another_configuration_is_not_taken(tmp_path):
    """Cells share trained runs by name; their configurations must be equal too."""
    path = RunDir(tmp_path / GOOD.trained)
    path.create(overwrite=False)
    other = dataclasses.replace(TINY, epochs=2)
    path.write_config(other, image_shape=[28, 28, 1], classes=10, num_train=64)
    (path.path / "model.json").write_text("{}")
    (found,) = run_study([SOLVED], tmp_path, progress=False)
    assert "was trained with another configuration: epochs was 2" in found["error"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"name": "a/b"}, "name must consist of letters"),
        ({"images": GIVEN["images"] + 1}, r"images must lie in \[0, 1\]"),
        (
            {"labels": GIVEN["labels"][1:]},
            "images and labels must be as many, not 11 and 10",
        ),
        ({"labels": GIVEN["labels"] + 5}, "labels must lie"),
        ({"model": lambda image: image}, "a vector of logits"),
        ({"measures": Measures(tightness=True)}, "belong to an ODEClassifier"),
        ({"measures": Measures(linf=(0.1,))}, "belong to an ODEClassifier"),
    ],
)
def test_a_subject_is_checked(change, words):
    with pytest.raises(ValueError, match=words):
        given = {"name": "given", "model": linear, **GIVEN, "measures": Measures()}
        Subject(**given | change)


def test_linf_is_certified_by_intervals(getkey, tmp_path):
    model = small_model(getkey(), "free", jnode.Solver("euler", steps=1))
    images = jr.uniform(getkey(), (5, 8, 8, 1))
    labels = jnp.argmax(jax.vmap(model)(images), axis=1)
    given: dict = {"images": np.asarray(images), "labels": np.asarray(labels)}
    one = Subject("free", model, **given, measures=Measures(linf=(0.0, 1.0)))
    (row,) = run_study([one], tmp_path, progress=False)
    assert [
        (e["norm"], e["radius"], e["certified_accuracy"])
        for e in row["certified_accuracy"]
    ] == [("linf", 0.0, 1.0), ("linf", 1.0, 0.0)]
    starts = [np.asarray(model.encode(x)).ravel() for x in images]
    ends = [np.asarray(model.embed(x)) for x in images]
    lengths = [np.linalg.norm(y - x) for x, y in zip(starts, ends, strict=True)]
    shares = np.divide(lengths, [np.linalg.norm(x) for x in starts])
    assert row["movement"] == pytest.approx(np.mean(shares), rel=1e-5)
    (table,) = tables([row])
    assert table.head[-2:] == ["certified Linf 0", "certified Linf 1"]
    assert table.rows[0][-2:] == ["100.0", "0.0"]
    adaptive = model.with_solver(jnode.Solver("bosh3"))
    for bad, words in (
        (lambda: Subject("a", adaptive, **given, measures=one.measures), "fixed steps"),
        (lambda: dataclasses.replace(GOOD, measures=Measures(linf=(-1.0,))), "least 0"),
    ):
        with pytest.raises(ValueError, match=f"measures.linf .*{words}"):
            bad()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_plan_of_the_page_runs(tmp_path):
    page = (PLANS.parent.parent / "docs" / "study.md").read_text()
    (plan,) = re.findall(r"```python\n(# my_plan\.py.*?)```", page, flags=re.DOTALL)
    (tmp_path / "my_plan.py").write_text(plan)
    out = tmp_path / "out"
    script("study.py", tmp_path / "my_plan.py", out, "--quiet")
    rows = study.read_rows([out])
    assert [row["error"] for row in rows] == [None] * 4
    assert [row["nfe"] for row in rows] == [8, 16, 16, 32]
    for row in rows:
        (proven,), (robust,) = row["certified_accuracy"], row["robust"]
        low, high = robust["interval"]
        assert low <= robust["robust_accuracy"] <= high
        assert proven["certified_accuracy"] <= row["clean_accuracy"]
    assert rows[0]["clean_accuracy"] > 0.95  # solved as it was trained
    assert (out / "my_plan-own-mnist5k.png").read_bytes()[:4] == b"\x89PNG"
    assert "| euler-8 | euler, 8 steps | 8 |" in (out / "my_plan.md").read_text()
