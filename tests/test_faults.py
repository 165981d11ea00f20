"""Faults in training: each stops it in order, and nothing that was written is lost."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jnode
from jnode.train import (
    NonFiniteLossError,
    OutOfMemoryError,
    SolverFailedError,
    loop,
    step,
    train,
)
from jnode.train.checkpoints import Checkpoints
from jnode.train.losses import LossConfig
from tests.test_train import TINY, numbers

pytestmark = pytest.mark.usefixtures("standard_promotion")

ROOT = Path(__file__).parent.parent


@pytest.fixture
def poisoned(monkeypatch):
    """The loss is NaN wherever all labels are 0, and the fourth batch is such."""
    make_loss, make_step = step.make_loss, step.make_step

    def poisonous(config):
        loss = make_loss(config)

        def call(model, images, labels, keys, progress):
            value, aux = loss(model, images, labels, keys, progress)
            return jnp.where((labels == 0).all(), jnp.nan, value), aux

        return call

    def made(*args):
        real = make_step(*args)

        def call(batch, state):
            images, labels = batch
            return real((images, labels * (state.step != 3)), state)

        return call

    monkeypatch.setattr(step, "make_loss", poisonous)
    monkeypatch.setattr(step, "make_step", made)


def test_a_bad_step_is_named(poisoned, tmp_path):
    with pytest.raises(NonFiniteLossError) as stop:
        train(TINY, tmp_path / "run", progress=False)
    words = str(stop.value)
    assert "At step 4 the loss was nan" in words and "learning rate of 0.00" in words
    assert "step_000000003" in words
    kept = Checkpoints(tmp_path / "run")
    assert kept.steps() == [3] and len(numbers(tmp_path / "run")) == 1


@pytest.mark.slow
def test_a_bad_step_is_skipped_where_asked(poisoned, tmp_path):
    config = dataclasses.replace(TINY, skip_nonfinite=True)
    model = train(config, tmp_path / "run", progress=False)
    first, second = numbers(tmp_path / "run")
    assert (first["skipped_steps"], second["skipped_steps"]) == (0, 1)
    assert np.isfinite(second["loss"])
    arrays = [x for x in jax.tree.leaves(model) if isinstance(x, jax.Array)]
    assert all(jnp.isfinite(x).all() for x in arrays)


def some(failed=0.0, steps=3, skipped=0, bad_step=0, bad_loss=0.0):
    """The totals after so many steps, a share of whose solves failed."""
    start = step.empty_metrics(LossConfig())
    return dataclasses.replace(
        start,
        sums=start.sums | {"failed": jnp.asarray(failed * steps)},
        steps=jnp.asarray(steps),
        skipped=jnp.asarray(skipped),
        bad_step=jnp.asarray(bad_step),
        bad_loss=jnp.asarray(bad_loss),
    )


@pytest.mark.slow
def test_failed_solves_are_counted_and_limited(tmp_path):
    solver = jnode.Solver("heun", rtol=1e-6, atol=1e-6, max_steps=1)
    config = dataclasses.replace(
        TINY,
        solver=solver,
        loss=LossConfig(),
        epochs=1,
        max_failed=1.0,
    )
    train(config, tmp_path / "run", progress=False)
    (row,) = numbers(tmp_path / "run")
    assert row["failed_solves"] == 96 and np.isfinite(row["loss"])
    strict = dataclasses.replace(config, max_failed=0.25)
    step.check_metrics(some(failed=0.25), strict, 9, "none")
    with pytest.raises(SolverFailedError, match=r"26\.0% .* max_steps=1, .*rtol"):
        step.check_metrics(some(failed=0.26), strict, 9, "none")


def test_an_explosion_and_endless_skipping_stop():
    with pytest.raises(NonFiniteLossError, match=r"At step 2 the loss was 1e\+09"):
        step.check_metrics(some(bad_step=2, bad_loss=1e9), TINY, 9, "none")
    skipping = dataclasses.replace(TINY, skip_nonfinite=True)
    step.check_metrics(some(bad_step=2, skipped=50), skipping, 9, "none")
    with pytest.raises(NonFiniteLossError):
        step.check_metrics(some(steps=0, bad_step=1, skipped=10), skipping, 9, "none")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 B"),
    ],
)
def test_out_of_memory_names_the_knobs(monkeypatch, tmp_path, error):
    def full(*args):
        raise error

    monkeypatch.setattr(loop, "make_steps", lambda *args: full)
    with pytest.raises(OutOfMemoryError) as stop:
        train(TINY, tmp_path / "run", progress=False)
    for knob in ("batch_size", "accumulate", 'adjoint="checkpointed"', "features"):
        assert knob in str(stop.value)


def start(*args, cache, **kwargs):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=env | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
        **kwargs,
    )


def finish(process):
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
def test_killed_resumed_and_repeated_runs_are_the_same(tmp_path):
    """Four processes: undisturbed, killed by SIGKILL, resumed, repeated."""
    options = ["--epochs", "6", "--batch-size", "32", "--data.num-train", "96"]
    whole, broken, again = (tmp_path / name for name in ("whole", "broken", "again"))
    extra = ["--tensorboard", "--profile", "2"]
    finish(start("contractive", whole, *options, *extra, cache=tmp_path))
    assert list((whole / "tensorboard").glob("events.out.tfevents.*"))
    assert list((whole / "profile").rglob("*.xplane.pb"))
    options += ["--checkpoint-every", "1"]
    process = start("contractive", broken, *options, cache=tmp_path)
    deadline = time.monotonic() + 200
    written = broken / "checkpoints"
    while len(list(written.glob("step_?????????"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (broken / "model.eqx").exists()
    finish(start("contractive", broken, *options, "--resume", cache=tmp_path))
    finish(start("--from-run", whole, again, cache=tmp_path))
    for other in (broken, again):
        assert (other / "model.eqx").read_bytes() == (whole / "model.eqx").read_bytes()
        assert numbers(other) == numbers(whole)
    facts = json.loads((whole / "config.json").read_text())
    assert "train.py contractive" in facts["command"] and "jax" in facts["versions"]
    row = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    measured = ("images_per_second", "compile_seconds", "peak_process_bytes", "nfe")
    assert all(row[name] > 0 for name in measured)


def test_commit_of_the_working_directory(tmp_path, monkeypatch):
    from jnode._process import provenance

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance()["git"] is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for args in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *args], check=True, capture_output=True)
    found = provenance()["git"]
    assert len(found["commit"]) == 40 and not found["dirty"]
    (tmp_path / "new.py").write_text("1")
    assert provenance()["git"]["dirty"]
    monkeypatch.setenv("PATH", "")
    assert provenance()["git"] is None
