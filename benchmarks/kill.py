"""Kills training at random moments, goes on with it, and compares the end.

    python benchmarks/kill.py

One undisturbed run; then many runs of the same command, each killed by SIGKILL at a
random moment of its life and gone on with by --resume. Every one must end with the
same model, byte for byte, and the same metrics.
"""

import dataclasses
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

from jnode._versions import versions
from jnode.train.files import write_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
COMMAND = (
    *("contractive", "--epochs", "8", "--batch-size", "64", "--data.num-train", "640"),
    *("--checkpoint-every", "3"),
)
# Of a row of metrics, what depends on the machine's mood.
MOOD = {"seconds", "images_per_second", "compile_seconds", "peak_process_bytes"}


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes benchmarks/results/kill.json and kill.md."""

    kills: int = 20
    """How many runs to kill."""

    seed: int = 0
    """Of the moments."""


def start(run: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *COMMAND]
    return subprocess.Popen(
        [*command[:3], str(run), *command[3:], *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"JNODE_TRACEBACK": "1"},
    )


def finish(run: Path, *more: str) -> str:
    process = start(run, *more)
    out, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{run} ended with {process.returncode}: {out}")
    return out


def state(run: Path) -> tuple[int, int, int]:
    """The newest whole checkpoint, rows of metrics, and half-written checkpoints."""
    names = [p.name for p in (run / "checkpoints").glob("step_*")]
    whole = [int(n[5:]) for n in names if re.fullmatch(r"step_\d{9}", n)]
    metrics = run / "metrics.jsonl"
    rows = metrics.read_text().count("\n") if metrics.exists() else 0
    return max(whole, default=0), rows, len(names) - len(whole)


def numbers(run: Path) -> list[dict]:
    rows = [json.loads(s) for s in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in MOOD} for row in rows]


def main(args: Args) -> None:
    rng = random.Random(args.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        finish(whole)  # compiles
        finish(whole, "--overwrite")
        begun, process = time.monotonic(), start(whole, "--overwrite")
        started = wait_for(whole, process, begun)
        process.communicate()
        length = time.monotonic() - begun
        for kill in range(1, args.kills + 1):
            run = Path(folder) / f"run{kill}"
            begun, process = time.monotonic(), start(run)
            # After it has its folder: before, there is nothing to go on with.
            wait_for(run, process, begun)
            moment = rng.uniform(0, 0.95 * (length - started))
            time.sleep(moment)
            process.kill()
            process.communicate()
            killed = process.returncode == -9
            step, metrics, half = state(run)
            said = finish(run, "--resume")
            rows.append(
                {
                    "kill": kill,
                    "killed": killed,
                    "seconds": round(moment, 2),
                    "checkpoint": step,
                    "rows": metrics,
                    "half_written": half,
                    "fell_back": "damaged" in said,
                    "model_identical": same_bytes(run, whole),
                    "metrics_identical": numbers(run) == numbers(whole),
                }
            )
            print(rows[-1], flush=True)
        steps = numbers(whole)[-1]["step"]
    command = "scripts/train.py " + " ".join(COMMAND)
    write_json(
        RESULTS / "kill.json",
        {"command": command, "steps": steps, "versions": versions(), "rows": rows},
    )
    (RESULTS / "kill.md").write_text(markdown(rows, steps, command))


def wait_for(run: Path, process: subprocess.Popen, begun: float) -> float:
    """Seconds until the run has written its metrics file."""
    before = run.stat().st_ctime if run.exists() else 0.0
    while process.poll() is None:
        file = run / "metrics.jsonl"
        if file.exists() and file.stat().st_ctime > before:
            break
        time.sleep(0.01)
    return time.monotonic() - begun


def same_bytes(run: Path, other: Path) -> bool:
    return (run / "model.eqx").read_bytes() == (other / "model.eqx").read_bytes()


def markdown(rows: list[dict], steps: int, command: str) -> str:
    yes = {True: "yes", False: "**no**"}
    lines = [
        f"`{command}`, {steps} steps, killed by SIGKILL and gone on with:",
        "",
        "| kill | after s | last checkpoint | half written | model | metrics |",
        "| ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for r in rows:
        lines.append(
            f"| {r['kill']} | {r['seconds']:.2f} | step {r['checkpoint']} | "
            f"{r['half_written']} | {yes[r['model_identical']]} | "
            f"{yes[r['metrics_identical']]} |"
        )
    same = sum(r["model_identical"] and r["metrics_identical"] for r in rows)
    killed = sum(r["killed"] for r in rows)
    lines += [
        "",
        f"{killed} of {len(rows)} were alive when they were killed; {same} of "
        f"{len(rows)} ended bit-identical to the undisturbed run.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
