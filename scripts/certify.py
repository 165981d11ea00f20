"""Certify a trained run: python scripts/certify.py RUN_DIR."""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import tyro

import jnode
from jnode import certify, data
from jnode._cli import run
from jnode.train import RunDir
from jnode.train.files import write_json


@dataclasses.dataclass(frozen=True)
class Args:
    """Certified accuracy of the model of a run, written to its certificate.json."""

    run_dir: Annotated[str, tyro.conf.Positional]
    """A folder that scripts/train.py wrote."""

    radii: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5)
    """L2 radii in pixel units."""

    num_examples: int | None = None
    """How many test images; by default all."""

    data_dir: str | None = None
    """The TFDS folder, if elsewhere than in training."""


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    model = jnode.load(args.run_dir)
    refusal = certify.refusal(model)
    if refusal is not None:
        print(f"certificate {refusal}.")
        return
    folder = RunDir(args.run_dir)
    config, facts = folder.read_config()
    test = data.load(
        config.data.name, split="test", data_dir=args.data_dir or config.data.dir
    )
    if args.num_examples is not None:
        test = test.take(args.num_examples)
    images = np.asarray(data.to_float(jnp.asarray(test.images)))
    rows = certify.certified_accuracy(
        certify.certified_radii(model, images, test.labels), args.radii
    )
    write_json(
        folder.path / "certificate.json",
        {
            "dataset": test.name,
            "split": test.split,
            "num_examples": len(test),
            "num_train": facts["num_train"],
            "solver": str(model.solver),
            "lipschitz": float(model.lipschitz()),
            "certified_accuracy": rows,
        },
    )
    print(
        f"L <= {float(model.lipschitz()):.4f} from pixels to features, {model.solver}"
    )
    for row in rows:
        share = row["certified_accuracy"]
        print(f"certified accuracy at L2 {row['radius']:g}: {100 * share:.1f} %")


if __name__ == "__main__":
    run(main)
