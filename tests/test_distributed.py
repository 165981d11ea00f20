"""Two real processes train as one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY = [
    *("contractive", "--epochs", "2", "--batch-size", "32", "--data.num-train", "64"),
    *("--model.patch", "7", "--model.features", "50", "--model.hidden", "8"),
    *("--solver.steps", "1", "--loss.name", "natural"),
]


def start(folder, *options, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(ROOT / "scripts/train.py"), *TINY, *options]
    command.insert(3, str(folder))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env, cwd=ROOT, **pipes)


def pair(folder, second=()):
    """Two processes that find each other, one with more options; how they end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = ["--distributed", "--coordinator", f"127.0.0.1:{port}"]
    joined += ["--num-processes", "2", "--process-id"]
    processes = [start(folder, *joined, "0"), start(folder, *joined, "1", *second)]
    try:
        outputs = [p.communicate(timeout=240) for p in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *o) for p, o in zip(processes, outputs, strict=True)]


def test_two_processes_train_as_one(tmp_path):
    alone = start(tmp_path / "one", devices=2)
    (code, first, err), (other, second, err2) = pair(tmp_path / "two")
    assert code == other == 0, err + err2
    assert alone.communicate(timeout=240) and alone.returncode == 0
    one, two = (tmp_path / name / "model.eqx" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    rows = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 4]
    assert "batch of 32 = 2 devices x 16" in first and "Trained" in first
    assert "batch of" not in second and "Trained" not in second and "%" not in err2


def test_one_that_fails_ends_all(tmp_path):
    """Process 1 stops before it meets process 0, which does not wait for ever."""
    (code, _, _), (other, _, err) = pair(tmp_path / "two", ["--data.num-train", "8"])
    assert other == 2 and "error in process 1: ValueError: batch_size must be" in err
    assert code != 0
    assert not (tmp_path / "two" / "model.eqx").exists()
