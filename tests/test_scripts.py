"""The scripts, run as a user runs them."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jnode.train import RunDir
from tests.helpers import slow_but

ROOT = Path(__file__).parent.parent
TINY = ["--epochs", "2", "--batch-size", "32", "--data.num-train", "64"]


def script(name, *args, check=True):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=250
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_train_evaluate_certify_report(tmp_path):
    run = tmp_path / "run"
    script("train.py", "contractive", run, *TINY)
    attacks = ["--attack", "gaussian:0.2", "pgd:linf:0.1:3", "pgd:l2:0.5:3"]
    done = script("evaluate.py", run, *attacks, "--num-examples", "50")
    assert "pgd-3 Linf 0.1" in done.stdout
    evaluation = json.loads((run / "evaluation.json").read_text())
    wanted = {
        "dataset",
        "split",
        "num_examples",
        "seed",
        "solver",
        "clean_accuracy",
        "attacks",
        "worst_case",
        "certified_accuracy",
        "flags",
        "nfe",
        "versions",
        "device",
    }
    assert wanted <= set(evaluation)
    assert evaluation["num_examples"] == 50 and evaluation["solver"] == "eulerx3"
    assert set(evaluation["versions"]) >= {"jax", "jaxlib", "diffrax", "equinox"}
    row = evaluation["attacks"][1]
    assert {k: row[k] for k in ("name", "norm", "epsilon", "steps", "restarts")} == {
        "name": "pgd",
        "norm": "linf",
        "epsilon": 0.1,
        "steps": 3,
        "restarts": 1,
    }
    sure = {
        r["radius"]: r["certified_accuracy"] for r in evaluation["certified_accuracy"]
    }
    attacked = evaluation["attacks"][2]["robust_accuracy"]
    assert sure[0.5] <= attacked <= evaluation["clean_accuracy"]
    options = ["--num-examples", "50", "--num-attacked", "20"]
    done = script("certify.py", run, *options, "--radii", "1/2", "--linf", "1/255")
    assert f"certified accuracy at L2 0.5: {100 * sure[0.5]:.1f} %" in done.stdout
    certificate = json.loads((run / "certificate.json").read_text())
    l2, linf = certificate["certified_accuracy"]
    assert l2 == {"norm": "l2", "radius": 0.5, "certified_accuracy": sure[0.5]}
    # An Linf ball of 1/255 lies in the L2 ball of 28/255, about 0.11.
    assert sure[0.15] <= linf["certified_accuracy"] <= sure[0.1]
    (row,) = certificate["attacked"]["rows"]
    assert row["certified_accuracy"] <= row["certified_locally"]
    assert row["certified_locally"] <= row["robust_accuracy"]
    assert 1 <= certificate["tightness"]["ratio"] < 2
    assert (run / "certificate.png").read_bytes()[:4] == b"\x89PNG"
    smooth = ["--smoothing", "0.25", "--samples", "100", "--num-examples", "3"]
    done = script("certify.py", run, *smooth)
    assert "abstained" in done.stdout
    smoothed = json.loads((run / "certificate-smoothed.json").read_text())
    assert smoothed["smoothing"]["n"] == 100 and smoothed["num_examples"] == 3
    done = script("report.py", run)
    assert (run / "report.html").is_file()
    assert str((run / "report.html").resolve()) in done.stdout
    # All of it is known, so that --overwrite would remove it.
    assert RunDir(run).unknown() == []
    # What is there is not overwritten unasked.
    done = script("train.py", "contractive", run, *TINY, check=False)
    assert done.returncode == 2 and "--overwrite" in done.stderr


ERRORS = [
    ("train.py", ("resnet", "x"), "preset must be one of ortho"),
    ("train.py", ("ortho", "x", "--data.name", "imagenet"), "data set must be one"),
    (
        "train.py",
        ("ortho", "x", "--data.name", "mnist", "--data.dir", "/nowhere"),
        "mnist",
    ),
    ("train.py", ("ortho", "x", "--solver.steps", "0"), "steps must be"),
    ("evaluate.py", ("/nowhere", "--attack", "magic:linf:1"), "attack must be one"),
    ("evaluate.py", ("/nowhere",), "not a run folder"),
    ("report.py", ("/nowhere",), "not a run folder"),
    ("certify.py", ("/nowhere",), "not a run folder"),
]


@pytest.mark.parametrize(
    ("name", "args", "message"), slow_but(ERRORS, ERRORS[1], ERRORS[4], unpack=True)
)
def test_errors_are_one_sentence(tmp_path, name, args, message):
    args = [str(tmp_path / "x") if a == "x" else a for a in args]
    done = script(name, *args, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_exit_codes():
    """Of errors that say what to do, in one sentence; others come as they are."""
    code = """
    import signal
    from jnode._files import FolderInUse
    from jnode._process import Interrupted, run
    from jnode.train import OutOfMemoryError, StorageError, TrainingError

    errors = (
        ValueError("bad"),
        FolderInUse("bad"),
        OutOfMemoryError("bad"),
        StorageError("bad"),
        Interrupted(signal.SIGTERM),
        KeyboardInterrupt(),
        RuntimeError("a fault of ours"),
    )
    for error in errors:
        def main():
            raise error
        try:
            run(main, {TrainingError: 3, StorageError: 4})
        except SystemExit as stop:
            print(stop.code)
    """
    env = {k: v for k, v in os.environ.items() if k != "JNODE_TRACEBACK"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env,
    )
    assert done.stdout.split() == ["2", "2", "3", "4", "143", "130"]
    assert done.stderr.count("error: bad\n") == 4
    assert "RuntimeError: a fault of ours" in done.stderr and done.returncode == 1


@pytest.mark.slow
def test_training_that_cannot_go_on_exits_with_3(tmp_path):
    done = script(
        "train.py",
        "unconstrained",
        tmp_path / "run",
        *TINY,
        "--max-loss",
        "1e-9",
        check=False,
    )
    assert done.returncode == 3 and "error: At step 1 the loss was" in done.stderr
    assert "Traceback" not in done.stderr


NAMES = ("train.py", "evaluate.py", "certify.py", "report.py", "study.py")


@pytest.mark.parametrize("name", slow_but(NAMES, "train.py"))
def test_help(name):
    assert name in script(name, "--help").stdout


def test_import_is_quick_and_light():
    code = (
        "import sys, time; t = time.time(); import jnode; "
        "heavy = {'tensorflow_datasets', 'matplotlib', 'torch', 'orbax', 'mlxtend'}; "
        "print(time.time() - t, heavy & set(sys.modules))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split(maxsplit=1)
        for _ in range(3)
    ]
    assert {o[1].strip() for o in outputs} == {"set()"}
    # The best of three: the machine may be busy with other things.
    assert min(float(o[0]) for o in outputs) < 3
