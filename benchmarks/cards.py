"""Makes a trained run a model of the package: python benchmarks/cards.py RUN_DIR NAME.

Rounds the run's weights to bfloat16, so that they take half the space in a wheel;
certifies the rounded model on the test images; and writes it into
jnode/models/weights/NAME, with its card, to which card_attacks.py adds robust accuracy
under AutoAttack. With --retrain, trains a model of the package anew by its card's
command for one epoch, and compares the metrics with the card's; with --recertify,
certifies it again.
"""

import dataclasses
import json
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jnode
from jnode import certify
from jnode._files import write_json
from jnode._process import run
from jnode.models import save, shipped
from jnode.models.shipped import WEIGHTS
from jnode.runs import certify_run, read
from jnode.train import RunDir

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Args:
    """Makes a trained run a model of the package, or trains one anew."""

    run_dir: Annotated[str, tyro.conf.Positional]
    """A folder that scripts/train.py wrote; with --retrain, an empty one."""

    name: Annotated[str, tyro.conf.Positional]
    """The model's name in the package."""

    radii: tuple[float, ...] = (36 / 255, 72 / 255, 108 / 255)
    """L2 radii to certify at."""

    seeds: tuple[str, ...] = ()
    """Runs that differ in the seed alone, certified by scripts/certify.py."""

    retrain: bool = False
    """Train the first epoch of a model of the package, and compare."""

    recertify: bool = False
    """Write the certified accuracies of a model of the package anew into its card."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.retrain:
        retrain(Path(args.run_dir), args.name)
        return
    if args.recertify:
        recertify(args.name)
    else:
        make(args)
    write_table()


def recertify(name: str) -> None:
    """Certifies a model of the package on the test images, by the allowances for
    rounding of today. Its seeds, whose weights are not kept, and local certificates
    stay as they were."""
    card, opened = shipped.card(name), read(shipped.folder(name), None, None)
    labels = opened.test.labels
    radii = certify.certified_radii(opened.model, opened.images, labels)
    share = lambda radii, least: float(np.mean(radii >= least))
    for row in card["certified_accuracy"]:
        row["certified_accuracy"] = share(radii, row["radius"])
    for row in card["attacked"]["rows"]:
        first = card["attacked"]["num_examples"]
        row["certified_accuracy"] = share(radii[:first], row["radius"])
    for row in card["autoattack"]:
        first = radii[: row["num_examples"]]
        row["certified_accuracy"] = share(first, row["radius"])
    write_json(WEIGHTS / name / "card.json", card)


def write_table() -> None:
    """Writes and prints the models of the package, and their accuracy under attack."""
    for name, text in (("cards", table()), ("card_attacks", attacks_table())):
        (RESULTS / f"{name}.md").write_text(text)
        print(text)


def table() -> str:
    """Markdown, one row for each model of the package, and for each seed beside it."""
    lines = [
        "| model | training images | minutes | weights | clean % | certified % at L2 |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for name in shipped.names():
        told = shipped.card(name)
        lines.append(
            f"| `{name}` | {told['num_train']:,} | {told['minutes']:.0f} | "
            f"{told['parameters']:,} | {_shares(told)} |"
        )
        lines += [
            f"| the same, seed {other['seed']} | | | | {_shares(other)} |"
            for other in told["seeds"]
        ]
    return "\n".join(lines) + "\n"


def _shares(row: dict) -> str:
    proven = ", ".join(
        f"{100 * at['certified_accuracy']:.1f} at {label(at['radius'])}"
        for at in row["certified_accuracy"]
    )
    return f"{100 * row['clean_accuracy']:.1f} | {proven}"


def attacks_table() -> str:
    """Markdown, one row for each model and radius at which it was attacked."""
    lines = [
        "| model | L2 radius | test images | certified % | robust % under AutoAttack |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in shipped.names():
        for row in shipped.card(name)["autoattack"]:
            lines.append(
                f"| `{name}` | {label(row['radius'])} | {row['num_examples']:,} | "
                f"{100 * row['certified_accuracy']:.1f} | "
                f"{100 * row['robust_accuracy']:.1f} |"
            )
    return "\n".join(lines) + "\n"


def label(radius: float) -> str:
    """A radius as people know it: 36/255 rather than 0.1412."""
    levels = 255 * radius
    whole = abs(levels - round(levels)) < 1e-6 and round(levels) != 255
    return f"{round(levels)}/255" if whole else f"{radius:g}"


def make(args: Args) -> dict:
    """The card of a run, written beside its rounded weights."""
    run_dir = Path(args.run_dir)
    config, facts = RunDir(run_dir).read_config()
    rows = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    with tempfile.TemporaryDirectory() as temporary:
        rounded = Path(temporary)
        told = json.loads((run_dir / "config.json").read_text())
        told["command"] = _without_folder(told["command"])
        write_json(rounded / "config.json", told)
        model = _rounded(jnode.load(run_dir))
        sizes = {k: facts[k] for k in ("image_shape", "classes")}
        save(rounded, model, config.model, config.solver, **sizes)
        found = certify_run(rounded, args.radii)
        for name in ("config.json", "model.json", "model.eqx"):
            (WEIGHTS / args.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(rounded / name, WEIGHTS / args.name)
    arrays = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    tightness = found["tightness"]
    content = {
        "command": f"python {told['command']}",
        "commit": facts["git"]["commit"] if facts["git"] else None,
        "dataset": found["dataset"],
        "num_train": found["num_train"],
        "epochs": config.epochs,
        "minutes": round(rows[-1]["seconds"] / 60, 1),
        "device": facts["versions"]["device"],
        "versions": facts["versions"],
        "parameters": sum(x.size for x in arrays),
        "first_epoch": {k: rows[0][k] for k in ("loss", "accuracy")},
        "num_examples": found["num_examples"],
        "clean_accuracy": found["clean_accuracy"],
        "certified_accuracy": found["certified_accuracy"],
        "lipschitz": {
            k: tightness[k] for k in ("certified_upper_bound", "empirical_lower_bound")
        },
        "attacked": found["attacked"],
        "autoattack": [],
        "seeds": [_accuracies(Path(folder)) for folder in args.seeds],
    }
    write_json(WEIGHTS / args.name / "card.json", content)
    return content


def _without_folder(command: str) -> str:
    """The command with RUN for the run's folder, which belongs to the machine."""
    script, preset, _, *options = shlex.split(command)
    return shlex.join([script, preset, "RUN", *options])


def _rounded(model):
    def one(x):
        return x.astype(jnp.bfloat16).astype(x.dtype) if eqx.is_inexact_array(x) else x

    return jax.tree.map(one, model)


def _accuracies(folder: Path) -> dict:
    config, _ = RunDir(folder).read_config()
    found = json.loads((folder / "certificate.json").read_text())
    kept = ("clean_accuracy", "certified_accuracy")
    return {"seed": config.seed, **{k: found[k] for k in kept}}


def retrain(run_dir: Path, name: str) -> None:
    """Trains the first epoch of a model of the package, and prints both metrics."""
    command = [sys.executable, "scripts/train.py", "--from-run", str(WEIGHTS / name)]
    training = subprocess.Popen([*command, str(run_dir)])
    metrics = run_dir / "metrics.jsonl"
    while training.poll() is None and not (metrics.is_file() and metrics.read_text()):
        time.sleep(1)
    training.send_signal(signal.SIGTERM)
    training.wait()
    row, then = json.loads(metrics.read_text().splitlines()[0]), shipped.card(name)
    for key, value in then["first_epoch"].items():
        print(f"{key}: {row[key]:.6f} now, {value:.6f} on the card")


if __name__ == "__main__":
    run(main)
