"""What checkpoints cost: how long training waits for one, and the work of all.

    python benchmarks/checkpoints.py

Training without any, after every epoch, and every ten steps, interleaved. Seconds of
the processor, compilation included, as other work on the machine does not change them.
"""

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

from jnode._files import write_json
from jnode._process import versions
from jnode.train import get_preset, train
from jnode.train.checkpoints import Checkpoints

RESULTS = Path(__file__).parent / "results"
CONTESTANTS = {"none": None, "each epoch": None, "every 10 steps": 10}
ROUNDS = 3


def main() -> None:
    config = dataclasses.replace(get_preset("contractive"), epochs=4)
    work = {name: [] for name in CONTESTANTS}
    waits = {name: [] for name in CONTESTANTS}
    save = Checkpoints.save

    def timed(self, *args):
        begin = time.perf_counter()
        path = save(self, *args)
        waits[name].append(time.perf_counter() - begin)
        return path

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        for _ in range(ROUNDS):
            for name, every in CONTESTANTS.items():
                none = name == "none"
                Checkpoints.save = (lambda self, step, *_: run) if none else timed
                begin = time.process_time()
                train(
                    config, run, overwrite=True, progress=False, checkpoint_every=every
                )
                work[name].append(time.process_time() - begin)
                print(name, round(work[name][-1], 2), flush=True)
        newest = max((run / "checkpoints").iterdir())
        size = sum(p.stat().st_size for p in newest.rglob("*") if p.is_file())
    Checkpoints.save = save
    found = {
        "preset": "contractive",
        "epochs": config.epochs,
        "bytes": size,
        "processor_seconds": work,
        "waits": waits,
        "versions": versions(),
    }
    write_json(RESULTS / "checkpoints.json", found)
    lines = [
        "| checkpoints | number | training waits, ms each | processor seconds |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, taken in work.items():
        number = len(waits[name]) // ROUNDS
        wait = f"{1e3 * statistics.median(waits[name]):.0f}" if number else "–"
        lines.append(f"| {name} | {number} | {wait} | {statistics.median(taken):.1f} |")
    lines += ["", f"A checkpoint of this model is {size / 1024:.0f} KiB."]
    (RESULTS / "checkpoints.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
