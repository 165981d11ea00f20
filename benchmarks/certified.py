"""Certified accuracy of trained runs: python benchmarks/certified.py RUN_DIR ...

Collects what scripts/certify.py wrote into each run folder, and how it was trained,
into benchmarks/results/certified.json and .md.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from jnode._process import run
from jnode.train import RunDir

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Args:
    """Collects the certificates of runs."""

    run_dirs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders that scripts/train.py and scripts/certify.py wrote."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    rows = [collect(Path(folder)) for folder in args.run_dirs]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "certified.json").write_text(json.dumps(rows, indent=1) + "\n")
    text = table(rows)
    (RESULTS / "certified.md").write_text(text)
    print(text)


def collect(folder: Path) -> dict:
    """Certificate, training time and facts of one run.

    **Raises:** `FileNotFoundError` for a run that was not certified.
    """
    config, facts = RunDir(folder).read_config()
    path = folder / "certificate.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no certificate.json: run scripts/certify.py on it first."
        )
    certificate = json.loads(path.read_text())
    del certificate["curve"]
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "run": folder.name,
        "config": dataclasses.asdict(config),
        "epochs": last["epoch"],
        "training_seconds": round(last["seconds"]),
        "versions": facts["versions"],
        **certificate,
    }


def overview(rows: list[dict]) -> str:
    """Markdown, one row a run."""
    lines = [
        "| preset | training images | minutes | clean % | certified % at L2 |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        proven = ", ".join(
            f"{100 * r['certified_accuracy']:.1f} at {label(r['radius'])}"
            for r in row["certified_accuracy"]
            if r["norm"] == "l2"
        )
        lines.append(
            f"| `{row['run']}` | {row['num_train']:,} | "
            f"{row['training_seconds'] / 60:.0f} | "
            f"{100 * row['clean_accuracy']:.1f} | {proven} |"
        )
    return "\n".join(lines)


def label(radius: float) -> str:
    """A radius as people know it: 36/255 rather than 0.1412."""
    levels = 255 * radius
    whole = abs(levels - round(levels)) < 1e-6 and round(levels) != 255
    return f"{round(levels)}/255" if whole else f"{radius:g}"


def table(rows: list[dict]) -> str:
    """Markdown: the overview, then one section a run."""
    parts = [overview(rows), ""]
    for row in rows:
        tight, attacked = row["tightness"], row["attacked"]
        parts += [
            f"**{row['dataset']}**, {row['num_train']:,} training images, "
            f"{row['epochs']} epochs in {row['training_seconds'] / 60:.0f} minutes on "
            f"{row['versions']['device']}; {row['solver']}; "
            f"{row['num_examples']:,} test images, clean accuracy "
            f"{100 * row['clean_accuracy']:.1f} %. Lipschitz constant from pixels to "
            f"features: certified at most {tight['certified_upper_bound']:.4f}, found "
            f"{tight['empirical_lower_bound']:.4f} (ratio {tight['ratio']:.2f}).",
            "",
            f"| L2 radius | certified accuracy | certified, first "
            f"{attacked['num_examples']} | robust after {attacked['attack']}, first "
            f"{attacked['num_examples']} |",
            "| ---: | ---: | ---: | ---: |",
        ]
        some = {r["radius"]: r for r in attacked["rows"]}
        for proven in row["certified_accuracy"]:
            if proven["norm"] != "l2":
                continue
            seen = some[proven["radius"]]
            shares = (
                proven["certified_accuracy"],
                seen["certified_locally"],
                seen["robust_accuracy"],
            )
            cells = [label(proven["radius"]), *(f"{100 * s:.1f}" for s in shares)]
            parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    run(main)
