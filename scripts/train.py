"""Train a model: python scripts/train.py PRESET RUN_DIR; PRESET --help has more."""

import dataclasses
import sys
from typing import Annotated

import tyro

from jnode.train import PRESETS, TrainConfig, get_preset, train


@dataclasses.dataclass(frozen=True)
class Args:
    """Trains a model and writes its run folder."""

    run_dir: Annotated[str, tyro.conf.Positional]
    """The folder to write: config.json, metrics.jsonl, model.eqx, checkpoints/."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]

    overwrite: bool = False
    """Replace the run that is there."""

    resume: bool = False
    """Continue the run that is there."""


def main(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        print(f"Presets: {', '.join(PRESETS)}.")
        print("python scripts/train.py PRESET --help lists the options of a preset.")
        return
    preset = get_preset(argv[0])
    args = tyro.cli(
        Args,
        args=argv[1:],
        prog=f"train.py {argv[0]}",
        default=Args(run_dir=tyro.MISSING, config=preset),
    )
    train(args.config, args.run_dir, overwrite=args.overwrite, resume=args.resume)
    print(f"Trained. Next: python scripts/evaluate.py {args.run_dir}")


if __name__ == "__main__":
    from jnode._cli import run

    run(lambda: main(sys.argv[1:]))
