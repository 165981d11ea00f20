"""A model that comes with the package, compared with its card."""

import os
from typing import Any

import numpy as np

from jnode import certify
from jnode.models import shipped
from jnode.runs import read


def check_card(
    name: str, *, data_dir: str | os.PathLike | None = None
) -> list[dict[str, Any]]:
    """Certifies a model that comes with the package on its card's test images.

    **Arguments:** its name; where the data lie, by default `TFDS_DATA_DIR`.

    **Returns:** for each accuracy of the card the L2 `radius` in pixel units (0 for
    clean accuracy), what is on the `card`, and what was `found`. The two may differ by
    the images whose radius is so close to the given one that the rounding of another
    machine decides.

    **Raises:** `ValueError` for an unknown name; and the errors of `jnode.data.load`.
    """
    card = shipped.card(name)
    run = read(shipped.folder(name), card["num_examples"], data_dir)
    proven = certify.certified_radii(run.model, run.images, run.test.labels)
    stated = [(0.0, card["clean_accuracy"])]
    stated += [
        (r["radius"], r["certified_accuracy"]) for r in card["certified_accuracy"]
    ]
    return [
        {"radius": radius, "card": share, "found": float(np.mean(proven >= radius))}
        for radius, share in stated
    ]
