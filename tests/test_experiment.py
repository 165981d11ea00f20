"""Evaluating a run folder by a protocol."""

import json

import jax.random as jr
import pytest

import jnode
from jnode import report
from jnode.evaluation import checks, loop
from jnode.experiment import evaluate_run
from jnode.report.page import render
from jnode.train import LossConfig, RunDir, TrainConfig
from jnode.train.files import write_tree

SETTINGS = dict(
    protocol="quick",
    norm="linf",
    epsilons=[0.02, 0.05],
    num_examples=12,
    batch_size=8,
    progress=False,
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """An untrained run."""
    config = TrainConfig(
        model=jnode.ModelConfig("gradient_flow", patch=7, features=49, hidden=8),
        solver=jnode.Solver("euler", steps=2),
        loss=LossConfig("natural"),
    )
    run = RunDir(tmp_path_factory.mktemp("runs") / "run")
    run.create(overwrite=False)
    shape = (28, 28, 1)
    run.write_config(config, image_shape=shape, classes=10, num_train=9, versions={})
    model = jnode.build(
        config.model, config.solver, image_shape=shape, classes=10, key=jr.key(0)
    )
    write_tree(run.path / "model.eqx", model)
    return run.path


def test_a_protocol_attacks_checks_and_goes_on(run_dir, monkeypatch, capsys):
    found = evaluate_run(run_dir, **SETTINGS)
    written = json.loads((run_dir / "evaluation.json").read_text())
    assert written == json.loads(json.dumps(found))
    assert found["protocol"] == "quick" and found["successive"]
    assert found["estimated_seconds"] > 0
    names = [(r["name"], r["via"]) for r in found["attacks"]]
    assert names[:4] == [("pgd", ""), ("apgd-ce", ""), ("apgd-t", ""), ("square", "")]
    assert names[4:6] == [("pgd", "rk4x8"), ("pgd", "encoder")]
    assert names[6:] == names[:6]
    left = [r["robust_accuracy"] for r in found["attacks"]]
    assert left == sorted(left, reverse=True)
    assert [w["robust_accuracy"] for w in found["worst_case"]] == [left[5], left[11]]
    wanted = {"outputs", "adjoint", "gradient", "batch_mates", "tolerance", "work"}
    assert set(found["checks"]) == wanted | {"stored_images"}
    assert found["checks"]["stored_images"]["standing"] == [
        round(12 * share) for share in left
    ]
    flagged = [f for c in found["checks"].values() for f in c["flags"]]
    assert set(flagged) <= set(found["flags"])
    # Nothing is done twice.
    none = lambda *_: pytest.fail("it was finished")
    monkeypatch.setattr(loop, "_attack", none)
    for name in ("gradient", "batch_mates", "tolerance", "work"):
        monkeypatch.setattr(checks, name, none)
    assert evaluate_run(run_dir, **SETTINGS | {"progress": True}) == found
    said = capsys.readouterr().out
    assert "12 finished attacks" in said and "Protocol quick: 12 attacks" in said
    page = render([report.read_run(run_dir)])
    for words in ("What was checked", "Batch mates", "via rk4x8", "protocol quick"):
        assert words in page
    assert "NFE, attacked" in report.table([report.read_run(run_dir)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "thorough"}, "quick, standard, full"),
        ({"protocol": None}, "either attacks or a protocol"),
        ({"norm": "l7"}, "linf, l2"),
        ({"epsilons": [-1.0]}, "epsilon must be at least 0"),
    ],
)
def test_bad_protocols(run_dir, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate_run(run_dir, **SETTINGS | change)
