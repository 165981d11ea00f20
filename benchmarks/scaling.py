"""Weak scaling on paper, from 1 to 256 chips: an estimate, not a measurement.

python benchmarks/scaling.py reads benchmarks/results/tpu.json (which
benchmarks/compile_tpu.py wrote) and writes scaling.{json,md,png} beside it.

The model: every chip keeps its own batch, so a step takes the compiler's estimate of
its compute and then one all-reduce of the gradients, which does not overlap with it. On
a ring of n chips a chip sends 2 (n - 1) / n of the gradients' bytes, at half of its
links' public bandwidth, and waits 2 (n - 1) times for a hop. Loading of data,
stragglers and the network between pods are not in it.
"""

import json
from pathlib import Path

from tpu import CHIPS

from jnode._files import write_json

RESULTS = Path(__file__).parent / "results"
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
HOP = 1e-6  # seconds from chip to chip: an assumption, on the high side
SHARE = 0.5  # of the links that one ring uses: an assumption


def allreduce_seconds(size: float, chips: int, kind: str) -> float:
    """A ring all-reduce of `size` bytes over so many chips."""
    if chips == 1:
        return 0.0
    sent = 2 * (chips - 1) / chips * size
    return sent / (SHARE * CHIPS[kind].ici) + 2 * (chips - 1) * HOP


def estimate(row: dict) -> list[dict]:
    """One row for each number of chips, from a compiled training step."""
    size = row["gradient_bytes"]
    points = []
    for chips in COUNTS:
        exchange = allreduce_seconds(size, chips, row["chip"])
        step = row["estimated_seconds"] + exchange
        images = row["images_per_device"] * chips
        points.append(
            {
                "preset": row["preset"],
                "chip": row["chip"],
                "images_per_device": row["images_per_device"],
                "chips": chips,
                "compute_seconds": row["estimated_seconds"],
                "allreduce_seconds": exchange,
                "images_per_second": images / step,
                "efficiency": row["estimated_seconds"] / step,
            }
        )
    return points


def table(points: list[dict]) -> str:
    lines = [
        "Estimated, not measured: see benchmarks/scaling.py.",
        "",
        "| preset | TPU | images / device | compute µs | "
        + " | ".join("1 chip" if n == 1 else f"{n} chips" for n in COUNTS)
        + " |",
        "| --- " * (4 + len(COUNTS)) + "|",
    ]
    keys = list(dict.fromkeys(_key(p) for p in points))
    for key in keys:
        mine = [p for p in points if _key(p) == key]
        cells = [*map(str, key), f"{mine[0]['compute_seconds'] * 1e6:.0f}"]
        cells += [f"{100 * p['efficiency']:.0f} %" for p in mine]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _key(point):
    return point["preset"], point["chip"], point["images_per_device"]


def draw(points: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
    keys = list(dict.fromkeys(_key(p) for p in points))
    for key, colour, marker in zip(keys, colours, "os^Dvx", strict=False):
        mine = [p for p in points if _key(p) == key]
        axes.plot(
            [p["chips"] for p in mine],
            [100 * p["efficiency"] for p in mine],
            color=colour,
            marker=marker,
            label=f"{key[0]} on {key[1]}, {key[2]} images a device",
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(COUNTS, [str(n) for n in COUNTS])
    axes.set_ylim(0, 105)
    axes.set_xlabel("chips (each with a batch of its own)")
    axes.set_ylabel("estimated share of perfect scaling in %")
    axes.set_title("Weak scaling of a training step: an estimate on paper")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    rows = json.loads((RESULTS / "tpu.json").read_text())["rows"]
    steps = [r for r in rows if r["program"] == "train" and r["chips"] == 1]
    steps = [r for r in steps if r["chip"] in CHIPS]
    points = [p for row in steps for p in estimate(row)]
    assumed = {
        kind: {
            "ici_bytes_per_second": chip.ici,
            "share_used": SHARE,
            "hop_seconds": HOP,
        }
        for kind, chip in CHIPS.items()
    }
    write_json(RESULTS / "scaling.json", {"assumptions": assumed, "points": points})
    (RESULTS / "scaling.md").write_text(table(points))
    draw(points, RESULTS / "scaling.png")
    print(table(points))


if __name__ == "__main__":
    main()
