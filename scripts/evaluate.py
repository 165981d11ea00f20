"""Attack, check and certify a trained run: python scripts/evaluate.py RUN_DIR."""

import dataclasses
from typing import Annotated, Literal

import tyro

from jnode import attacks
from jnode._hosts import Hosts
from jnode._process import run
from jnode.evaluation import comparison
from jnode.report import read_run, table
from jnode.runs import evaluate_run
from jnode.sharding import all_devices, is_main_process, shareable
from jnode.train import RunDir


@dataclasses.dataclass(frozen=True)
class Args(Hosts):
    """Attacks, checks and certifies the model of a run; writes its evaluation.json."""

    run_dir: Annotated[str, tyro.conf.Positional]
    """A folder that scripts/train.py wrote."""

    protocol: Literal["quick", "standard", "full"] | None = None
    """The name of a protocol: attacks, transfers and checks."""

    norm: Literal["linf", "l2", "l1"] | None = None
    """The norm of a protocol's budgets; by default Linf and L2."""

    epsilon: tuple[str, ...] = ()
    """A protocol's budgets, such as 8/255; by default those usual for the data set."""

    attack: tuple[str, ...] = ()
    """In place of a protocol, attacks as name:norm:epsilon[:steps[:restarts]], or
    gaussian:sigma. By default noise, FGSM and PGD at the data set's usual budgets."""

    num_examples: int | None = None
    """How many test images; by default all, or as many as the protocol says."""

    batch_size: int | None = None
    """Images at a time, over all devices; by default 250, or a few more where the
    devices do not divide that."""

    seed: int = 0
    """The seed of the attacks' random numbers."""

    data_dir: str | None = None
    """The TFDS folder; by default TFDS_DATA_DIR."""

    quiet: bool = False
    """Show no progress, and print no table: only flags and errors."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    with args.joined():
        evaluate(args)


def evaluate(args: Args) -> None:
    chosen = [attacks.parse(spec) for spec in args.attack]
    if not chosen and args.protocol is None:
        config, _ = RunDir(args.run_dir).read_config()
        chosen = comparison(config.data.name)
    mesh, size = all_devices(), args.batch_size
    try:
        found = evaluate_run(
            args.run_dir,
            chosen,
            protocol=args.protocol,
            norm=args.norm,
            epsilons=[attacks.number(text) for text in args.epsilon],
            num_examples=args.num_examples,
            batch_size=shareable(250, mesh) if size is None else size,
            seed=args.seed,
            data_dir=args.data_dir,
            progress=not args.quiet,
            mesh=mesh,
        )
    except KeyboardInterrupt:
        print("Stopped. The same command goes on after the last finished attack.")
        raise
    if not is_main_process():
        return
    if not args.quiet:
        print(table([read_run(args.run_dir)]))
    for flag in found["flags"]:
        print(f"FLAG: {flag}")


if __name__ == "__main__":
    run(main)
