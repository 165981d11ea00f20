"""Breaks training on purpose, and shows what it says and what is left.

    python benchmarks/faults.py        # as root, on Linux: it mounts small file systems

Each fault is real: a file system that is full or read-only, files cut short, signals
sent, a learning rate that explodes, an address space that is too small. After those
that a user can mend, the run is resumed and must end bit-identical to an
undisturbed one.
"""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jnode._files import write_json
from jnode._process import versions

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SIZE = ("--epochs", "6", "--batch-size", "64", "--data.num-train", "640")
USUAL = ("contractive", *SIZE)


def start(run: Path, command=USUAL, *more: str, limit: int | None = None):
    def limited():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    script = [sys.executable, str(ROOT / "scripts" / "train.py"), command[0], str(run)]
    return subprocess.Popen(
        [*script, *command[1:], *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limited,
    )


def outcome(process) -> tuple[int, str]:
    """The exit code, and what was said that is no progress bar."""
    out, err = process.communicate()
    lines = [s for s in re.split(r"[\n\r]", out + err) if s and "%|" not in s]
    told = [s for s in lines if re.search(r"^error:|damaged|checkpoint", s)]
    return process.returncode, " ".join(told) or " ".join(lines[-1:])


def until_checkpoint(process, run: Path) -> None:
    while process.poll() is None and not list(
        (run / "checkpoints").glob("step_?????????")
    ):
        time.sleep(0.02)


def main() -> None:
    rows = []
    base = Path(tempfile.mkdtemp())
    disk = base / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    whole, run = base / "whole", disk / "run"

    def tell(fault, process, resumed=None, mend=lambda: None):
        code, said = outcome(process)
        left = len(list((run / "checkpoints").glob("step_?????????")))
        row = {"fault": fault, "exit_code": code, "said": said, "checkpoints": left}
        mend()
        if resumed is not None:
            after, said = outcome(start(resumed, USUAL, "--resume"))
            row |= {"resumed": after, "resumed_said": said}
            files = [folder / "model.eqx" for folder in (resumed, whole)]
            row["identical"] = files[0].read_bytes() == files[1].read_bytes()
        row = {
            k: v.replace(str(disk / "run"), "RUN").replace(str(base), "")
            if isinstance(v, str)
            else v
            for k, v in row.items()
        }
        print(row, flush=True)
        rows.append(row)

    def stopped(number=signal.SIGTERM):
        shutil.rmtree(run, ignore_errors=True)
        process = start(run)
        until_checkpoint(process, run)
        process.send_signal(number)
        return process

    try:
        outcome(start(whole))
        for number in (signal.SIGTERM, signal.SIGINT):
            tell(number.name, stopped(number), run)

        shutil.rmtree(run)
        process, filler = start(run), disk / "filler"
        until_checkpoint(process, run)
        try:
            with open(filler, "wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
        except OSError:
            pass
        tell("full disk", process, run, filler.unlink)

        outcome(stopped())
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        tell(
            "read-only folder",
            start(run, USUAL, "--resume"),
            run,
            lambda: subprocess.run(["mount", "-o", "remount,rw", disk], check=True),
        )

        outcome(stopped())
        newest = max((run / "checkpoints").glob("step_?????????"))
        for path in newest.rglob("d/*"):
            os.truncate(path, path.stat().st_size // 2)
        tell("newest checkpoint cut in half", start(run, USUAL, "--resume"), run)

        outcome(stopped())
        other = disk / "other"
        outcome(start(other, ("contractive", *SIZE, "--model.features", "16")))
        kept = disk / "kept"
        (run / "checkpoints").rename(kept)
        (other / "checkpoints").rename(run / "checkpoints")

        def mend():
            shutil.rmtree(run / "checkpoints")
            kept.rename(run / "checkpoints")

        resume = start(run, USUAL, "--resume")
        tell("checkpoints of another architecture", resume, run, mend)

        shutil.rmtree(run)
        exploding = ("unconstrained", *SIZE, "--learning-rate", "1e5")
        tell("exploding loss", start(run, exploding))
        exploding = (
            "unconstrained",
            *SIZE,
            "--learning-rate",
            "1e5",
            "--skip-nonfinite",
        )
        tell("the same, skipped", start(run, exploding, "--overwrite"))
        shutil.rmtree(run)
        adaptive = ("--solver.name", "heun", "--solver.steps", "None")
        tight = ("--solver.rtol", "1e-6", "--solver.max-steps", "2")
        tell("max_steps", start(run, ("unconstrained", *SIZE, *adaptive, *tight)))
        shutil.rmtree(run)
        large = ("unconstrained", "--batch-size", "4000", "--model.features", "4096")
        tell("out of memory", start(run, large, limit=24 * 2**30))
    finally:
        subprocess.run(["umount", disk], check=True)
        shutil.rmtree(base)
    write_json(RESULTS / "faults.json", {"versions": versions(), "rows": rows})
    (RESULTS / "faults.md").write_text(markdown(rows))


def markdown(rows: list[dict]) -> str:
    lines = [
        "| fault | exit code | what it says | checkpoints left | after --resume |",
        "| --- | ---: | --- | ---: | --- |",
    ]
    for r in rows:
        after = "–"
        if "resumed" in r:
            same = "bit-identical" if r["identical"] else "**different**"
            after = f"ends with {r['resumed']}, {same}"
        said = r["said"].replace("|", "\\|")
        head = f"| {r['fault']} | {r['exit_code']} | {said} | "
        lines.append(head + f"{r['checkpoints']} | {after} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
