"""Two real processes train, evaluate and certify as one does."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jnode import certify, sharding
from jnode.attacks import PGD, Budget
from jnode.certify import accuracy
from jnode.evaluation import evaluate
from jnode.models.batched import batched
from tests.test_sharding import FIXED, model_of, pixels

# Each starts processes that use both cores of a small machine.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TINY = [
    *("convex_potential_layer", "--loss.name", "natural"),
    *("--epochs", "30", "--batch-size", "32", "--data.num-train", "64"),
    *("--model.patch", "7", "--model.features", "50", "--model.hidden", "8"),
]


def start(folder, *options, devices=1, script="train.py"):
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(ROOT / "scripts" / script), str(folder), *options]
    if script == "train.py":
        command[2:3] = [TINY[0], str(folder), *TINY[1:]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env, cwd=ROOT, **pipes)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def pair(folder, *options, second=(), at_work=lambda processes: None, **how):
    """Two processes that find each other, one with more options; how they end."""
    address = f"127.0.0.1:{free_port()}"
    joined = [*options, "--distributed", "--coordinator", address]
    joined += ["--num-processes", "2", "--process-id"]
    processes = [
        start(folder, *joined, "0", **how),
        start(folder, *joined, "1", *second, **how),
    ]
    try:
        at_work(processes)
        outputs = [p.communicate(timeout=240) for p in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *o) for p, o in zip(processes, outputs, strict=True)]


def steps(folder):
    path = folder / "metrics.jsonl"
    rows = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(row)["step"] for row in rows]


def test_two_processes_train_as_one(tmp_path):
    """Also if a signal to one of them stops both, and both go on later."""
    one, two = tmp_path / "one", tmp_path / "two"

    def preempt(processes):
        while not steps(two) and processes[0].poll() is None:
            time.sleep(0.02)
        processes[1].send_signal(signal.SIGTERM)

    (code, first, err), (other, second, err2) = pair(two, at_work=preempt)
    assert code == other == 143, err + err2
    assert "batch of 32 = 2 devices x 16" in first and "--resume" in first + err
    assert "batch of" not in second and "--resume" not in second + err2
    done = steps(two)
    assert 2 <= done[-1] < 60 and not (two / "model.eqx").exists()

    alone = start(one, devices=2)
    (code, first, err), (other, second, err2) = pair(two, "--resume")
    assert code == other == 0, err + err2
    assert alone.communicate(timeout=240) and alone.returncode == 0
    assert (one / "model.eqx").read_bytes() == (two / "model.eqx").read_bytes()
    assert steps(two) == steps(one) == list(range(2, 62, 2))
    assert "Trained" in first and "Trained" not in second and "%" not in err2


def test_one_that_fails_ends_all(tmp_path):
    """Process 1 stops before it meets process 0, which does not wait for ever."""
    (code, _, _), (other, _, err) = pair(
        tmp_path / "two", second=["--data.num-train", "8"]
    )
    assert other == 2 and "error in process 1: ValueError: batch_size must be" in err
    assert code != 0
    assert not (tmp_path / "two" / "model.eqx").exists()


def summary(folder, name):
    found = json.loads((folder / name).read_text())
    for row in found.get("attacks", []):
        del row["seconds"]
    return found


def test_two_processes_evaluate_and_certify_as_one(tmp_path):
    """Of two devices each; what they write is what one device writes."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone = start(one, "--epochs", "2")
    assert alone.communicate(timeout=240) and alone.returncode == 0
    shutil.copytree(one, two)
    some = ["--num-examples", "40"]
    smooth = ["--smoothing", "0.25", "--samples", "30", "--num-examples", "6"]
    asked = [
        ("evaluation.json", "evaluate.py", ["--attack", "pgd:linf:0.1:3", *some]),
        ("certificate.json", "certify.py", ["--num-attacked", "24", *some]),
        ("certificate-smoothed.json", "certify.py", smooth),
    ]
    for name, script, options in asked:
        alone = start(one, *options, script=script)
        _, err = alone.communicate(timeout=240)
        assert alone.returncode == 0, err
        ends = pair(two, *options, script=script, devices=2)
        (code, first, err), (other, second, err2) = ends
        assert code == other == 0, err + err2
        assert "certified" in first and "certified" not in second
        ours, theirs = (jax.tree.flatten(summary(run, name)) for run in (two, one))
        assert ours[1] == theirs[1]
        for x, y in zip(ours[0], theirs[0], strict=True):
            assert x == (pytest.approx(y, abs=1e-5) if isinstance(y, float) else y)


def equal_to_one_device(*where):
    """Certificates and attacks over all devices, of all processes, and on one device.

    Run in a process of its own, or in two that are told where to meet.
    """
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    with sharding.distributed_context(*where) if where else nullcontext():
        mesh = sharding.data_mesh()
        assert mesh.size == 8
        model, images = model_of(FIXED), pixels(37)
        labels = np.array(jnp.argmax(jax.vmap(model)(jnp.asarray(images)), axis=1))
        labels[3] = (labels[3] + 1) % 4

        def radii(mesh, size):
            return certify.certified_radii(
                model, images, labels, batch_size=4 * size, mesh=mesh
            )

        ours = radii(mesh, 8)
        # On each device as many images at a time: the same bits.
        np.testing.assert_array_equal(ours, radii(None, 1))
        assert ours[3] == -1 and (np.delete(ours, 3) > 0).all()
        for certified in (
            lambda mesh: accuracy.locally_certified_radii(
                model, images[:20], labels[:20], mesh=mesh
            ),
            lambda mesh: smoothed(model, images[:11], mesh),
        ):
            ours, alone = certified(mesh), certified(None)
            np.testing.assert_allclose(ours, alone, atol=1e-6)
            assert len(np.unique(ours)) > 3
        trials = [(PGD(steps=2, restarts=2), Budget("linf", 0.01))]
        how = {"batch_size": 16, "progress": False}
        ours, alone = (
            evaluate(batched(model), images, labels, trials, mesh=m, **how).outcome
            for m in (mesh, None)
        )
        np.testing.assert_array_equal(ours.predictions, alone.predictions)
        np.testing.assert_array_equal(ours.robust, alone.robust)
        assert 0 < np.mean(ours.robust) < 1
        shown = ours.attacked[0].shown, alone.attacked[0].shown
        np.testing.assert_allclose(*shown, atol=1e-5)


def smoothed(model, images, mesh):
    """Counted votes: the same whatever the devices."""
    smoothing = certify.Smoothing(0.1, n0=20, n=200, batch_size=50)
    found = certify.smooth_certify(model, images, smoothing, key=jr.key(1), mesh=mesh)
    return np.where(found.predictions >= 0, found.radii, -1.0)


@pytest.mark.parametrize("processes", [1, 2])
def test_eight_devices_certify_as_one(processes):
    flags = f"--xla_force_host_platform_device_count={8 // processes}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    code = "from tests.test_distributed import *; equal_to_one_device({})"
    address = f"127.0.0.1:{free_port()}"
    places = [f"{address!r}, 2, {i}" for i in range(2)] if processes == 2 else [""]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(place)],
            env=env,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in places
    ]
    try:
        ends = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, ends
