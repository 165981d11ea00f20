"""Attack and certify a trained run: python scripts/evaluate.py RUN_DIR."""

import dataclasses
from typing import Annotated

import tyro

from jnode import attacks
from jnode._cli import run
from jnode.experiment import evaluate_run
from jnode.report import read_run, table

DEFAULT = (
    "gaussian:50/255",
    "gaussian:75/255",
    "gaussian:100/255",
    "fgsm:linf:0.1",
    "pgd:linf:0.05:10",
    "pgd:linf:0.1:40",
    "pgd:linf:0.2:10",
    "pgd:l2:0.5:20",
    "pgd:l2:1.0:20",
)


@dataclasses.dataclass(frozen=True)
class Args:
    """Attacks and certifies the model of a run; writes its evaluation.json."""

    run_dir: Annotated[str, tyro.conf.Positional]
    """A folder that scripts/train.py wrote."""

    attack: tuple[str, ...] = DEFAULT
    """Attacks as name:norm:epsilon[:steps[:restarts]], or gaussian:sigma."""

    num_examples: int | None = None
    """How many test images; by default all."""

    batch_size: int = 250
    """Images at a time."""

    seed: int = 0
    """Of the attacks' random numbers."""

    data_dir: str | None = None
    """The TFDS folder, if elsewhere than in training."""

    quiet: bool = False
    """Print no table."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    evaluate_run(
        args.run_dir,
        [attacks.parse(spec) for spec in args.attack],
        num_examples=args.num_examples,
        batch_size=args.batch_size,
        seed=args.seed,
        data_dir=args.data_dir,
    )
    if not args.quiet:
        print(table([read_run(args.run_dir)]))


if __name__ == "__main__":
    run(main)
