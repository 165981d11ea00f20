"""What checkpoints cost: training seconds without any, after every epoch, and often.

python benchmarks/checkpoints.py
"""

import dataclasses
import json
import statistics
import tempfile
from pathlib import Path

from jnode._versions import versions
from jnode.train import get_preset, train
from jnode.train.checkpoints import Checkpoints
from jnode.train.files import write_json

RESULTS = Path(__file__).parent / "results"
CONTESTANTS = {"none": None, "each epoch": None, "every 10 steps": 10}
ROUNDS = 5


def main() -> None:
    config = dataclasses.replace(get_preset("contractive"), epochs=4)
    seconds = {name: [] for name in CONTESTANTS}
    save = Checkpoints.save
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        for _ in range(ROUNDS):
            for name, every in CONTESTANTS.items():
                if name == "none":
                    Checkpoints.save = lambda self, step, *_: self.path(step)
                train(
                    config, run, overwrite=True, progress=False, checkpoint_every=every
                )
                Checkpoints.save = save
                lines = (run / "metrics.jsonl").read_text().splitlines()
                first, last = json.loads(lines[0]), json.loads(lines[-1])
                took = last["seconds"] - first["compile_seconds"]
                seconds[name].append(took)
                print(name, round(took, 2), flush=True)
        size = sum(
            p.stat().st_size
            for p in max((run / "checkpoints").iterdir()).rglob("*")
            if p.is_file()
        )
    ratios = {
        name: statistics.median(
            a / b for a, b in zip(taken, seconds["none"], strict=True)
        )
        for name, taken in seconds.items()
    }
    found = {
        "command": "python benchmarks/checkpoints.py",
        "preset": "contractive",
        "epochs": config.epochs,
        "steps": last["step"],
        "bytes": size,
        "seconds": seconds,
        "ratios": ratios,
        "versions": versions(),
    }
    write_json(RESULTS / "checkpoints.json", found)
    rows = [
        f"| {name} | {statistics.median(taken):.2f} | {ratios[name]:.3f} |"
        for name, taken in seconds.items()
    ]
    head = ["| checkpoints | seconds | ratio to none |", "| --- | ---: | ---: |"]
    (RESULTS / "checkpoints.md").write_text("\n".join([*head, *rows]) + "\n")


if __name__ == "__main__":
    main()
