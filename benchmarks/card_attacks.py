"""AutoAttack beside the certificate: python benchmarks/card_attacks.py NAME.

Attacks a model that comes with the package at the radii of its card, and writes robust
accuracy into the card, radius by radius; those that are there are not run again.

The certificate says that no attack can succeed on a certified image. So AutoAttack is
spent on the images that are classified correctly but not certified, and on a few
certified ones, of which none may fall.
"""

import dataclasses
import json
import time
from typing import Annotated

import jax
import numpy as np
import tyro
from cards import write_table

import jnode
from jnode import attacks, certify, data
from jnode._files import write_json
from jnode._process import run
from jnode.models import shipped
from jnode.models.shipped import WEIGHTS


@dataclasses.dataclass(frozen=True)
class Args:
    """Attacks a model of the package by AutoAttack at the radii of its card."""

    name: Annotated[str, tyro.conf.Positional]
    """The model's name in the package."""

    images: int = 1000
    """The first test images, of which robust accuracy is measured."""

    certified: int = 20
    """Certified images to attack nevertheless, at each radius."""

    radii: tuple[float, ...] = ()
    """Radii of the card to attack at; by default all."""

    data_dir: str | None = None
    """The TFDS folder; by default TFDS_DATA_DIR."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    path = WEIGHTS / args.name / "card.json"
    card = shipped.card(args.name)
    test = data.load(card["dataset"], split="test", data_dir=args.data_dir)
    test = test.take(args.images)
    images = np.asarray(data.to_float(test.images))
    labels = test.labels.astype(np.int32)
    model, _ = jnode.resolve(jnode.pretrained(args.name))
    proven = certify.certified_radii(model, images, labels)
    rows = card["autoattack"]
    done = {row["radius"] for row in rows if row["num_examples"] == len(labels)}
    for radius in args.radii or [r["radius"] for r in card["certified_accuracy"]]:
        if radius in done:
            continue
        row = attack(model, images, labels, proven, radius, args.certified)
        rows = [r for r in rows if r["radius"] != radius] + [row]
        print(json.dumps(row), flush=True)
        card["autoattack"] = sorted(rows, key=lambda r: r["radius"])
        write_json(path, card)
        write_table()


def attack(model, images, labels, proven, radius: float, nevertheless: int) -> dict:
    """Robust accuracy at one radius. `proven` holds the certified radii, -1 where the
    prediction is wrong."""
    begin = time.perf_counter()
    certified = proven >= radius
    right = proven >= 0
    open_ = np.flatnonzero(right & ~certified)
    some = np.flatnonzero(certified)[:nevertheless]
    chosen = np.concatenate([open_, some])
    found = attacks.run(
        jnode.batched(model),
        images[chosen],
        labels[chosen],
        attacks.autoattack(attacks.Budget("l2", radius)),
        key=jax.random.key(0),
        progress=False,
    )
    fell = found.first_success >= 0
    robust = int(certified.sum() + (~fell[: len(open_)]).sum())
    return {
        "radius": radius,
        "num_examples": len(labels),
        "certified_accuracy": float(certified.mean()),
        "robust_accuracy": robust / len(labels),
        "certified_attacked": len(some),
        "certified_fallen": int(fell[len(open_) :].sum()),
        "seconds": round(time.perf_counter() - begin),
    }


if __name__ == "__main__":
    run(main)
