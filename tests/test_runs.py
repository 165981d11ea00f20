"""Evaluating a run folder by a protocol."""

import dataclasses
import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode import attacks, report, runs
from jnode.attacks import describe, loop
from jnode.evaluation import Store, accuracy, checks, comparison
from jnode.models import save
from jnode.report.page import render
from jnode.runs import evaluate_run
from jnode.train import DataConfig, LossConfig, RunDir, TrainConfig

ROOT = Path(__file__).parent.parent
SETTINGS: dict[str, Any] = dict(
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
    sizes = {"image_shape": shape, "classes": 10}
    model = jnode.build(config.model, config.solver, **sizes, key=jr.key(0))
    save(run.path, model, config.model, config.solver, **sizes)
    return run.path


@pytest.mark.slow
def test_a_protocol_attacks_checks_and_goes_on(run_dir, monkeypatch, capsys):
    found = evaluate_run(run_dir, **SETTINGS)
    written = json.loads((run_dir / "evaluation.json").read_text())
    assert written == json.loads(json.dumps(found))
    assert found["protocol"] == "quick" and found["successive"]
    names = [(r["name"], r["via"]) for r in found["attacks"]]
    assert names[:4] == [("pgd", ""), ("apgd-ce", ""), ("apgd-t", ""), ("square", "")]
    assert names[4:6] == [("pgd", "rk4x8"), ("pgd", "encoder")]
    assert names[6:] == names[:6]
    left = [r["robust_accuracy"] for r in found["attacks"]]
    assert left == sorted(left, reverse=True)
    assert [w["robust_accuracy"] for w in found["worst_case"]] == [left[5], left[11]]
    wanted = {
        "outputs",
        "adjoint",
        "gradient",
        "batch_independence",
        "tolerance",
        "nfe",
    }
    assert set(found["checks"]) == wanted
    flagged = [f for c in found["checks"].values() for f in c["flags"]]
    assert set(flagged) <= set(found["flags"])
    # Nothing is done twice.
    none = lambda *_: pytest.fail("it was finished")
    monkeypatch.setattr(loop, "_run", none)
    for name in ("gradient", "batch_independence", "tolerance", "nfe_under_attack"):
        monkeypatch.setattr(checks, name, none)
    assert evaluate_run(run_dir, **{**SETTINGS, "progress": True}) == found
    said = capsys.readouterr().out
    assert "12 finished attacks" in said
    page = render([report.read_run(run_dir)])
    for words in (
        "What was checked",
        "Batch independence",
        "via rk4x8",
        "protocol quick",
    ):
        assert words in page
    assert "NFE, attacked" in report.table([report.read_run(run_dir)])


def test_attacks_of_another_solver_are_not_taken(run_dir, tmp_path):
    """The same weights, saved with another solver, are another model."""
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    wanted = [attacks.parse("gaussian:0.1")]
    settings = {"num_examples": 8, "batch_size": 8, "progress": False}
    file = copy / "evaluation" / "attack-000.npz"
    first = evaluate_run(copy, wanted, **settings)
    kept = file.stat().st_mtime_ns
    assert evaluate_run(copy, wanted, **settings) == first
    assert file.stat().st_mtime_ns == kept
    config = RunDir(copy).read_config()[0].model
    sizes = {"image_shape": (28, 28, 1), "classes": 10}
    save(copy, jnode.load(copy), config, jnode.Solver("heun", steps=1), **sizes)
    evaluate_run(copy, wanted, **settings)
    assert file.stat().st_mtime_ns > kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "thorough"}, "quick, standard, full"),
        ({"protocol": None}, "attacks or protocol must be given"),
        ({"norm": "l7"}, "linf, l2"),
        ({"epsilons": [-1.0]}, "epsilon must be at least 0"),
    ],
)
def test_bad_protocols(run_dir, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate_run(run_dir, **SETTINGS | change)


@pytest.mark.slow
def test_evaluations_are_counted_on_all_images(run_dir, monkeypatch):
    """More for one image of the last, ragged batch: the mean and the largest know."""
    harder = []

    def count(model, images):
        counts = jnp.full(len(images), 10)
        marked = jnp.all(images == jnp.asarray(harder[0])[None], axis=(1, 2, 3))
        return jnp.where(marked, 130, counts)

    real = accuracy._evaluations
    monkeypatch.setattr(accuracy, "_evaluations", count)
    model = jnode.load(run_dir).with_solver(jnode.Solver("heun", rtol=1e-2, atol=1e-2))
    images = np.asarray(jr.uniform(jr.key(0), (11, 28, 28, 1)))
    harder.append(images[10])
    found = accuracy.count_evaluations(model, images, batch_size=8)
    assert found.tolist() == [10] * 10 + [130]
    # Against the solves themselves.
    monkeypatch.setattr(accuracy, "_evaluations", real)
    found = accuracy.count_evaluations(model, images, batch_size=8)
    expected = real(model, jnp.asarray(images))
    np.testing.assert_array_equal(found, expected)
    fixed = accuracy.count_evaluations(jnode.load(run_dir), images, batch_size=8)
    assert fixed.tolist() == [2]


def test_the_mean_of_all_images_is_written(run_dir, monkeypatch):
    counts = np.asarray([4] * 9 + [40])
    monkeypatch.setattr(runs, "count_evaluations", lambda *_: counts)
    found = evaluate_run(
        run_dir,
        [attacks.Trial(attacks.GaussianNoise(0.1))],
        num_examples=10,
        batch_size=8,
        progress=False,
        pictures=False,
    )
    assert (found["nfe"], found["nfe_largest"]) == (7.6, 40)


def test_attacks_that_compare_have_the_budgets_of_their_data():
    told = lambda name: [describe(attack) for attack in comparison(name)]
    noise = ["gaussian sigma 0.196", "gaussian sigma 0.294", "gaussian sigma 0.392"]
    assert told("mnist5k") == [
        *noise,
        "fgsm linf 0.1",
        "pgd-40 linf 0.1",
        "pgd-40 linf 0.2",
        "pgd-40 linf 0.3",
        "pgd-20 l2 0.5",
        "pgd-20 l2 1",
    ]
    assert told("cifar10")[3:] == [
        "fgsm linf 0.00784",
        "pgd-40 linf 0.00784",
        "pgd-40 linf 0.0314",
        "pgd-20 l2 0.141",
        "pgd-20 l2 0.5",
    ]


def test_the_script_takes_the_budgets_of_the_run(run_dir, monkeypatch):
    """Of a run on CIFAR-10: not those of digits."""
    asked = []
    script = runpy.run_path(str(ROOT / "scripts" / "evaluate.py"))
    read = lambda self: (
        dataclasses.replace(TrainConfig(), data=DataConfig(name="cifar10")),
        {},
    )
    monkeypatch.setattr(RunDir, "read_config", read)
    main = script["main"]
    stop = lambda run_dir, attacks, **_: asked.extend(attacks) or sys.exit(0)
    monkeypatch.setitem(main.__globals__, "evaluate_run", stop)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(run_dir)])
    with pytest.raises(SystemExit):
        main()
    assert [describe(a) for a in asked] == [describe(a) for a in comparison("cifar10")]


CONTRADICTIONS = [
    (("--epsilon", "0.2"), "--epsilon must be left out: it does not go with an L2"),
    (("--norm", "linf", "--smoothing", "0.25"), "--smoothing must .* with --norm linf"),
    (("--norm", "linf", "--freeze"), "--freeze must be left out"),
    (("--smoothing", "0.25", "--linf", "0.1"), "--linf must .* with --smoothing"),
    (("--rounding", "proven", "--radii", "1"), "--radii must .* --rounding proven"),
]


@pytest.mark.parametrize(("options", "words"), CONTRADICTIONS)
def test_no_option_of_a_certificate_is_ignored(options, words, monkeypatch, run_dir):
    main = runpy.run_path(str(ROOT / "scripts" / "certify.py"))["main"]
    monkeypatch.setattr(sys, "argv", ["certify.py", str(run_dir), *options])
    with pytest.raises(ValueError, match=words):
        main()
    if options[0] == "--epsilon":
        monkeypatch.setattr(sys, "argv", ["certify.py", "certified_mnist", *options])
        with pytest.raises(ValueError, match="model that comes with the package"):
            main()


@pytest.mark.parametrize("size", [0, -3])
def test_a_wrong_batch_size_deletes_nothing(run_dir, size):
    kept = run_dir / "evaluation" / "attack-000.npz"
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(b"hours of work")
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, not {size}"):
        evaluate_run(run_dir, [jnode.attacks.parse("fgsm:l2:0.5")], batch_size=size)
    assert kept.read_bytes() == b"hours of work"
    kept.unlink()


def test_a_run_is_evaluated_by_one_process_at_a_time(run_dir):
    with (
        Store(run_dir / "evaluation", {"the data": "another's"}),
        pytest.raises(RuntimeError, match="in use by another evaluation"),
    ):
        evaluate_run(run_dir, **SETTINGS)
