"""Kills training at random moments, goes on with it, and compares the end.

    python benchmarks/kill.py

One undisturbed run; then many runs of the same command, each killed by SIGKILL at a
random moment (a random time after a random checkpoint) and continued by --resume.
Every one must end with the same model, byte for byte, and the same metrics.
"""

import dataclasses
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

from jnode._files import write_json
from jnode._process import versions

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
COMMAND = (
    *("contractive", "--epochs", "8", "--batch-size", "64", "--data.num-train", "320"),
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
        finish(whole)
        steps = numbers(whole)[-1]["step"]
        while len(rows) < args.kills:
            run = Path(folder) / f"run{len(rows) + 1}"
            after, delay = rng.randrange(steps - 3), rng.uniform(0, 0.5)
            process = start(run)
            wait_for(run, process, after)
            time.sleep(delay)
            process.kill()
            process.communicate()
            if process.returncode != -9:
                shutil.rmtree(run)  # it had ended by itself
                continue
            step, metrics, half = state(run)
            said = finish(run, "--resume")
            rows.append(
                {
                    "kill": len(rows) + 1,
                    "after_checkpoint": after,
                    "delay": round(delay, 3),
                    "checkpoint": step,
                    "rows": metrics,
                    "half_written": half,
                    "fell_back": "damaged" in said,
                    "model_identical": same_bytes(run, whole),
                    "metrics_identical": numbers(run) == numbers(whole),
                }
            )
            print(rows[-1], flush=True)
    command = "scripts/train.py " + " ".join(COMMAND)
    write_json(
        RESULTS / "kill.json",
        {"command": command, "steps": steps, "versions": versions(), "rows": rows},
    )
    (RESULTS / "kill.md").write_text(markdown(rows, steps, command))


def wait_for(run: Path, process: subprocess.Popen, step: int) -> None:
    """Returns once the run has its folder, and a checkpoint past this step, if any."""
    while process.poll() is None:
        ready = (run / "metrics.jsonl").exists()
        if ready and (step < 3 or state(run)[0] >= step):
            return
        time.sleep(0.01)


def same_bytes(run: Path, other: Path) -> bool:
    return (run / "model.eqx").read_bytes() == (other / "model.eqx").read_bytes()


def markdown(rows: list[dict], steps: int, command: str) -> str:
    yes = {True: "yes", False: "**no**"}
    lines = [
        f"`{command}`, {steps} steps, killed by SIGKILL and resumed:",
        "",
        "| kill | last checkpoint | rows of metrics | half-written checkpoints | "
        "model identical | metrics identical |",
        "| ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for r in rows:
        lines.append(
            f"| {r['kill']} | step {r['checkpoint']} | {r['rows']} | "
            f"{r['half_written']} | {yes[r['model_identical']]} | "
            f"{yes[r['metrics_identical']]} |"
        )
    same = sum(r["model_identical"] and r["metrics_identical"] for r in rows)
    lines += [
        "",
        f"{same} of {len(rows)} ended bit-identical to the undisturbed run.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
