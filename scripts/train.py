"""Train a model: python scripts/train.py PRESET RUN_DIR, or --from-run OLD_RUN RUN_DIR.

python scripts/train.py PRESET --help lists the options of a preset.
"""

import dataclasses
import sys
from contextlib import nullcontext
from typing import Annotated

import tyro

from jnode import sharding
from jnode._process import run, versions
from jnode.train import (
    PRESETS,
    RunDir,
    StorageError,
    TrainConfig,
    TrainingError,
    get_preset,
    train,
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Where a run is written, and how it is run."""

    run_dir: Annotated[str, tyro.conf.Positional]
    """The folder to write: configuration, metrics, model and checkpoints."""

    overwrite: bool = False
    """Replace the run that is there."""

    resume: bool = False
    """Go on with the run that is there."""

    checkpoint_every: int | None = None
    """Steps between checkpoints; by default only one after each epoch."""

    steps_per_dispatch: int | None = None
    """Steps that the host starts at a time; by default 4 on CPU and 50 elsewhere."""

    tensorboard: bool = False
    """Write the metrics for TensorBoard too, into RUN_DIR/tensorboard."""

    profile: int = 0
    """How many steps to trace with jax.profiler, into RUN_DIR/profile."""

    quiet: bool = False
    """Show no progress, and print nothing but errors."""

    distributed: bool = False
    """Join the processes on several hosts (docs/distributed.md)."""

    coordinator: str | None = None
    """With --distributed, outside of TPU pods and SLURM: HOST:PORT of process 0."""

    num_processes: int | None = None
    """With --coordinator: how many processes there are."""

    process_id: int | None = None
    """With --coordinator: which of them this is, from 0."""


@dataclasses.dataclass(frozen=True)
class Args(Options):
    """Trains a model and writes its run folder."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = PRESETS["ortho"]


@dataclasses.dataclass(frozen=True)
class Repeat(Options):
    """Trains once more with the configuration of another run."""

    from_run: str = ""
    """The run to repeat; only its config.json is read."""

    data_dir: str | None = None
    """The TFDS folder, which run folders do not name."""


def main(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        print(f"Presets: {', '.join(PRESETS)}.")
        return
    if "--from-run" in argv or argv[0].startswith("--from-run="):
        args = tyro.cli(Repeat, args=argv, prog="train.py")
        config = _repeated(args)
    else:
        preset = get_preset(argv[0])
        args = tyro.cli(
            Args,
            args=argv[1:],
            prog=f"train.py {argv[0]}",
            default=Args(run_dir=tyro.MISSING, config=preset),
        )
        config = args.config
    options = {f.name: getattr(args, f.name) for f in dataclasses.fields(Options)}
    hosts = [options.pop(k) for k in ("coordinator", "num_processes", "process_id")]
    distributed, quiet = options.pop("distributed"), options.pop("quiet")
    if not distributed and any(value is not None for value in hosts):
        raise ValueError("--coordinator and its like need --distributed beside them.")
    with sharding.distributed_context(*hosts) if distributed else nullcontext():
        train(config, mesh=sharding.all_devices(), progress=not quiet, **options)
        if sharding.is_main_process() and not quiet:
            print(f"Trained. Next: python scripts/evaluate.py {args.run_dir}")


def _repeated(args: Repeat) -> TrainConfig:
    config, facts = RunDir(args.from_run).read_config()
    there = facts.get("versions", {})
    for name, here in versions().items():
        if there.get(name) != here:
            print(f"note: {name} was {there.get(name)} there and is {here} here.")
    data = dataclasses.replace(config.data, dir=args.data_dir)
    return dataclasses.replace(config, data=data)


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]), {TrainingError: 3, StorageError: 4})
