"""Certified accuracy of trained runs: python benchmarks/certified.py RUN_DIR ...

Collects what scripts/certify.py wrote into each run folder, and how it was trained,
into benchmarks/results/certified.json and .md.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from jnode._cli import run
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


def table(rows: list[dict]) -> str:
    """Markdown, one section a run."""
    parts = []
    for row in rows:
        tight, attacked = row["tightness"], row["attacked"]
        parts += [
            f"**{row['dataset']}**, {row['num_train']:,} training images, "
            f"{row['epochs']} epochs in {row['training_seconds'] / 60:.0f} minutes on "
            f"{row['versions']['device']}; {row['solver']}; "
            f"{row['num_examples']:,} test images, clean accuracy "
            f"{100 * row['clean_accuracy']:.1f} %. Stretch from pixels to features: "
            f"certified at most {tight['certified_upper_bound']:.4f}, found "
            f"{tight['empirical_lower_bound']:.4f} (ratio {tight['ratio']:.2f}).",
            "",
            f"| L2 radius | certified accuracy | certified, first "
            f"{attacked['num_examples']} | standing after {attacked['attack']}, first "
            f"{attacked['num_examples']} |",
            "| ---: | ---: | ---: | ---: |",
        ]
        some = {r["radius"]: r for r in attacked["rows"]}
        for proven in row["certified_accuracy"]:
            if proven["norm"] != "l2":
                continue
            seen = some[proven["radius"]]
            parts.append(
                f"| {proven['radius']:.4g} | {100 * proven['certified_accuracy']:.1f} "
                f"| {100 * seen['certified_locally']:.1f} "
                f"| {100 * seen['robust_accuracy']:.1f} |"
            )
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    run(main)
