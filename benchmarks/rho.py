"""Clean against certified accuracy over rho: python benchmarks/rho.py.

Trains the presets certified_mnist and certified_cifar10 at several rho, each for a few
epochs, and certifies each model on 5,000 training images that were held out. Rows are
written into benchmarks/results/rho.json and .md as they are done, and drawn into
rho.png; those that are there already are not run again.
"""

import dataclasses
import json
from pathlib import Path

import matplotlib.pyplot as plt
import tyro
from architectures import measure
from cards import label

from jnode._process import run
from jnode.train import LossConfig, TrainConfig, get_preset

RESULTS = Path(__file__).parent / "results"
# Of each preset: epochs, radii, and (rho, logit scale).
CURVES: dict[str, tuple[int, tuple[float, ...], tuple[tuple[float, float], ...]]] = {
    "certified_mnist": (
        2,
        (0.5, 1.0, 1.58),
        ((0.3, 5.0), (0.45, 5.0), (0.6, 5.0), (1.0, 4.0), (1.4, 3.0), (1.8, 3.0)),
    ),
    "certified_cifar10": (
        1,
        (36 / 255, 72 / 255, 108 / 255),
        ((0.1, 10.0), (0.18, 8.0), (0.25, 7.0), (0.35, 6.0), (0.5, 5.0)),
    ),
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Trains and certifies a preset at each rho that has no row yet."""

    data_dir: str | None = None
    """The TFDS folder; by default TFDS_DATA_DIR."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    path = RESULTS / "rho.json"
    rows = json.loads(path.read_text()) if path.is_file() else {}
    for preset, (epochs, radii, points) in CURVES.items():
        for rho, scale in points:
            name = f"{preset}, rho {rho:g}, scale {scale:g}"
            if name in rows:
                continue
            config = configured(preset, epochs, rho, scale, args)
            rows[name] = {
                "preset": preset,
                "rho": rho,
                "logit_scale": scale,
                "epochs": epochs,
                "radii": radii,
                **measure(config, args.data_dir, radii),
            }
            path.write_text(json.dumps(rows, indent=1) + "\n")
            (RESULTS / "rho.md").write_text(table(rows))
    figure(rows)
    print(table(rows))


def configured(
    preset: str, epochs: int, rho: float, scale: float, args: Args
) -> TrainConfig:
    """The preset at this rho, without the images that are held out."""
    base = get_preset(preset)
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, validation=5000, dir=args.data_dir),
        loss=LossConfig("margin", rho=rho, logit_scale=scale),
        epochs=epochs,
    )


def table(rows: dict) -> str:
    """Markdown: a table for each preset, a row for each rho."""
    lines = []
    for preset, (epochs, radii, _) in CURVES.items():
        of_preset = [row for row in rows.values() if row["preset"] == preset]
        if not of_preset:
            continue
        heads = " | ".join(label(radius) for radius in radii)
        lines += [
            f"| `{preset}`, {epochs} epochs: rho | logit scale | clean | {heads} |",
            "| ---: | ---: | ---: |" + " ---: |" * len(radii),
        ]
        for row in of_preset:
            shares = " | ".join(f"{100 * x:.1f}" for x in row["accuracies"])
            lines.append(f"| {row['rho']:g} | {row['logit_scale']:g} | {shares} |")
        lines.append("")
    return "\n".join(lines)


def figure(rows: dict) -> None:
    """Draws clean accuracy and certified accuracy at each radius over rho."""
    _, axes = plt.subplots(1, len(CURVES), figsize=(9, 3.6), layout="constrained")
    for ax, (preset, (_, radii, _)) in zip(axes, CURVES.items(), strict=True):
        of_preset = [row for row in rows.values() if row["preset"] == preset]
        names = ["clean", *(f"certified at {label(radius)}" for radius in radii)]
        for i, name in enumerate(names):
            shares = [100 * row["accuracies"][i] for row in of_preset]
            ax.plot([row["rho"] for row in of_preset], shares, "o-", label=name)
        ax.set(xlabel="rho", ylabel="accuracy (%)", ylim=(0, None))
        ax.set_title(preset, fontsize=10)
        ax.legend(fontsize=8)
    plt.savefig(RESULTS / "rho.png", dpi=150)


if __name__ == "__main__":
    run(main)
