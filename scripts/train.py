"""Train a model: python scripts/train.py PRESET RUN_DIR, or --from-run OLD_RUN RUN_DIR.

python scripts/train.py PRESET --help lists the options of a preset.
"""

import dataclasses
import inspect
import sys
from typing import Annotated

import tyro

from jnode import sharding
from jnode._hosts import Hosts
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
class Options(Hosts):
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
        options_of_training = inspect.cleandoc(TrainConfig.__doc__ or "")
        args = tyro.cli(
            Args,
            args=argv[1:],
            prog=f"train.py {argv[0]}",
            description=f"{Args.__doc__}\n\n{options_of_training}",
            default=Args(run_dir=tyro.MISSING, config=preset),
        )
        config = args.config
    names = {f.name for f in dataclasses.fields(Options)}
    names -= {f.name for f in dataclasses.fields(Hosts)}
    options = {name: getattr(args, name) for name in names}
    quiet = options.pop("quiet")
    with args.joined():
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
