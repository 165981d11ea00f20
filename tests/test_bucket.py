"""Run folders in a bucket of Google Cloud Storage, on a server of its interface."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jnode._files import as_path, in_bucket
from jnode.train import RunDir, get_preset, train
from tests.bucket import served

ROOT = Path(__file__).parent.parent
RUN = "gs://bucket/runs/tiny"
TINY = [
    *("--loss.name", "natural", "--epochs", "2"),
    *("--batch-size", "32", "--data.num-train", "64"),
    *("--model.patch", "7", "--model.features", "50", "--model.hidden", "8"),
]


@pytest.fixture(scope="module")
def bucket():
    """A function that runs a script, and the bucket's objects."""
    pytest.importorskip("gcsfs")
    with served() as (environment, objects):
        env = {**os.environ, **environment, "JAX_PLATFORMS": "cpu"}

        def script(name, *options):
            command = [sys.executable, str(ROOT / "scripts" / name), *options]
            done = subprocess.run(
                command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=280
            )
            return done.returncode, done.stdout, done.stderr

        yield script, objects


def trained(script, *options):
    return script("train.py", "convex_potential_layer", RUN, *TINY, *options)


def content(objects, name):
    return objects[f"runs/tiny/{name}"][0]


@pytest.mark.slow
def test_a_run_from_training_to_its_report(bucket, tmp_path):
    """Trained, refused, resumed, evaluated, certified and reported."""
    script, objects = bucket
    code, out, err = trained(script)
    assert code == 0 and "Trained" in out, err
    weights, rows = content(objects, "model.eqx"), content(objects, "metrics.jsonl")
    assert [json.loads(row)["step"] for row in rows.splitlines()] == [2, 4]
    # The same bytes as in a folder of this machine.
    local = ["convex_potential_layer", str(tmp_path / "run"), *TINY]
    assert script("train.py", *local)[0] == 0
    assert weights == (tmp_path / "run" / "model.eqx").read_bytes()

    code, _, err = trained(script)
    assert code == 2 and "exists already" in err
    # From the checkpoint, the model being gone.
    del objects["runs/tiny/model.eqx"]
    code, _, err = trained(script, "--resume")
    assert code == 0 and content(objects, "model.eqx") == weights, err

    attack = ["--num-examples", "20", "--attack", "fgsm:linf:0.1"]
    for _ in range(2):
        code, out, err = script("evaluate.py", RUN, *attack)
        assert code == 0, err
    assert "1 finished attacks are taken from gs://bucket" in out
    smooth = ["--smoothing", "0.25", "--samples", "20", "--num-examples", "3"]
    assert script("certify.py", RUN, *smooth)[0] == 0
    written = json.loads(content(objects, "certificate-smoothed.json"))
    assert written["num_examples"] == 3
    assert script("report.py", RUN)[0] == 0
    assert content(objects, "report.html").startswith(b"<!")


@pytest.mark.slow
def test_damaged_checkpoints_are_moved_aside(bucket):
    script, objects = bucket
    code, _, err = trained(script, "--overwrite")
    assert code == 0, err
    assert "runs/tiny/report.html" not in objects
    newest = "checkpoints/step_000000004"
    for name in [n for n in objects if newest in n and "/d/" in n]:
        objects[name] = b"", objects[name][1]
    code, out, err = trained(script, "--resume")
    assert code == 0 and "step_000000004 is damaged" in out, out + err
    assert any(n.startswith("runs/tiny/damaged/step_000000004/") for n in objects)
    assert any(f"runs/tiny/{newest}/state" in n for n in objects)  # trained anew


def test_what_is_no_bucket(tmp_path):
    path = as_path(tmp_path)
    assert path == tmp_path and not in_bucket(path)
    with pytest.raises(ValueError, match="s3://bucket/run must be a folder on this"):
        RunDir("s3://bucket/run")
    with pytest.raises(ValueError, match="begin with gs://"):
        train(get_preset("ortho"), "memory://run")
