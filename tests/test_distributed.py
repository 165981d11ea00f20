"""Two real processes train as one does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = [
    *("convex_potential_layer", "--loss.name", "natural"),
    *("--epochs", "30", "--batch-size", "32", "--data.num-train", "64"),
    *("--model.patch", "7", "--model.features", "50", "--model.hidden", "8"),
]


def start(folder, *options, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(ROOT / "scripts/train.py"), *TINY, *options]
    command.insert(3, str(folder))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env, cwd=ROOT, **pipes)


def pair(folder, *options, second=(), at_work=lambda processes: None):
    """Two processes that find each other, one with more options; how they end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = [*options, "--distributed", "--coordinator", f"127.0.0.1:{port}"]
    joined += ["--num-processes", "2", "--process-id"]
    processes = [start(folder, *joined, "0"), start(folder, *joined, "1", *second)]
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_one_that_fails_ends_all(tmp_path):
    """Process 1 stops before it meets process 0, which does not wait for ever."""
    (code, _, _), (other, _, err) = pair(
        tmp_path / "two", second=["--data.num-train", "8"]
    )
    assert other == 2 and "error in process 1: ValueError: batch_size must be" in err
    assert code != 0
    assert not (tmp_path / "two" / "model.eqx").exists()
