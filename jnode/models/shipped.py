"""Trained models that come with the package, each with a card.

A model's folder holds the files of a run folder without checkpoints and evaluations
(`config.json`, `model.json`, `model.eqx`), and `card.json`.
"""

import json
from pathlib import Path
from typing import Any

from jnode._checks import check_choice
from jnode.models.classifier import ODEClassifier
from jnode.models.file import load

WEIGHTS = Path(__file__).parent / "weights"


def names() -> tuple[str, ...]:
    """The names of the models that come with the package."""
    return tuple(sorted(path.parent.name for path in WEIGHTS.glob("*/card.json")))


def folder(name: str) -> Path:
    """The folder of a model that comes with the package.

    **Raises:** `ValueError` for an unknown name.
    """
    check_choice("name", name, names())
    return WEIGHTS / name


def pretrained(name: str) -> ODEClassifier:
    """A trained model that comes with the package, still constrained.

    Its weights are in the package: nothing is downloaded, and loading runs no code.

    **Arguments:** one of `jnode.models.shipped.names()`.

    **Returns:** a model that maps one image, `Float[Array, "height width channels"]`
    with pixels in [0, 1], to logits.

    **Raises:** `ValueError` for an unknown name.
    """
    return load(folder(name))


def card(name: str) -> dict[str, Any]:
    """The card of a model that comes with the package: its training and its results.

    Its keys are: `command` and `commit`, which trained it; `dataset`, `num_train`,
    `epochs`, `minutes`, `device`, `parameters`; `first_epoch`, metrics of its training;
    `num_examples`, test images; `clean_accuracy` and `certified_accuracy` on them;
    `lipschitz`, a certified upper bound and an empirical lower bound; `attacked`,
    robust accuracy under PGD, and `autoattack`, that under the standard protocol, where
    it was run; `seeds`, the same accuracies for trainings that differ only in the seed.

    **Raises:** `ValueError` for an unknown name.
    """
    return json.loads((folder(name) / "card.json").read_text())
