"""Who takes part: published checkpoints with their published figures, and ours."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import gains
import structured
import tisode

import jnode

Budget = tuple[str, float]


@dataclasses.dataclass(frozen=True)
class Published:
    """A published accuracy: of clean images, or under an attack.

    - `accuracy`: the figure.
    - `attack`, `budget`: what it was measured under; `None` for clean images.
    - `first`: measured on the first this many test images; `None` for all of them, and
        0 for a choice that is not known.
    - `noisy`: whether half of the images had Gaussian noise (see `noisy_half`).
    """

    accuracy: float
    attack: str | None = None
    budget: Budget | None = None
    first: int | None = None
    noisy: bool = False


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A row of the table.

    - `name`, `paper`: how it is called, and where it comes from ("jnode" for ours).
    - `repository`: the checkout's name in the folder of checkpoints; empty for ours.
    - `dataset`: its test images, as in `jnode.data.NAMES`.
    - `make`: from the checkout to the model.
    - `published`: what its authors state, clean accuracy first.
    - `budgets`: what it is attacked with here: radii of its paper and of ours.
    """

    name: str
    paper: str
    repository: str
    dataset: str
    make: Callable[[Path], Callable]
    published: tuple[Published, ...]
    budgets: tuple[Budget, ...]


DIGITS: tuple[Budget, ...] = (("linf", 0.3), ("linf", 0.1), ("l2", 1.0))
PHOTOGRAPHS: tuple[Budget, ...] = (("l2", 0.5), ("l2", 36 / 255))


def _tisode(name: str, label: str, clean: float, fgsm: dict[float, float]):
    under = [
        Published(accuracy, "FGSM", ("linf", epsilon), first=0)
        for epsilon, accuracy in fgsm.items()
    ]
    published = (Published(clean, noisy=True), *under)
    make = lambda folder: tisode.build(folder, name)
    return Contestant(label, "TisODE", "TisODE", "mnist", make, published, DIGITS)


def _gains(label: str, file: str, clean: float, first: int | None):
    # The names end as in the repository's own scripts.
    make = lambda folder: gains.build(folder, f"{file}.pth.tar")
    published = (Published(clean, first=first),)
    budgets = (("linf", 0.2), ("linf", 0.1))
    return Contestant(label, "GAINS", "GAINS", "mnist", make, published, budgets)


def _structured(kind: str, margin: str, clean: float, under: dict[float, float]):
    make = lambda folder: structured.build(folder, f"{kind}/{margin}")
    attack = "L2PGD-10 (foolbox)"
    published = [Published(clean, first=1024)]
    published += [
        Published(accuracy, attack, ("l2", epsilon), first=1024)
        for epsilon, accuracy in under.items()
    ]
    return Contestant(
        f"{kind}, margin {margin}",
        "Structured networks",
        "StructuredNeuralNetworks",
        "cifar10",
        make,
        tuple(published),
        PHOTOGRAPHS,
    )


def _ours(name: str, dataset: str):
    # Attacked by benchmarks/card_attacks.py, whose results are in the model's card.
    make = lambda folder: jnode.pretrained(name)
    return Contestant(name, "jnode", "", dataset, make, (), ())


_TRAINED = "activation_mini_method_dopri5_0.005_2a_checkpoint_epoch_100_seed_12345"
_BOX = (
    "boxactivation_mini_method_dopri5_0.005_2a_epoch_100_seed_12345_target_{}"
    "_gamma_0.01_omega_0.0_traj_0_run_1.0"
)
CONTESTANTS = (
    _tisode("CNN", "CNN", 0.9922, {0.15: 0.855, 0.3: 0.545, 0.5: 0.168}),
    _tisode("ODE", "ODE net", 0.9945, {0.15: 0.941, 0.3: 0.723, 0.5: 0.194}),
    _tisode("tisode", "TisODE", 0.9941, {0.3: 0.749, 0.5: 0.375}),
    _gains("standard training", _TRAINED, 0.9907, None),
    _gains("adversarial training", f"PGD{_TRAINED}", 0.9932, None),
    _gains("certified training, 0.11", _BOX.format("0.11"), 249 / 256, 256),
    _gains("certified training, 0.22", _BOX.format("0.22"), 236 / 256, 256),
    _structured("Contractive", "0.3", 0.7969, {36 / 255: 0.7646, 0.5: 0.6494}),
    _structured("Switch flexible", "0.3", 0.8320, {36 / 255: 0.7764, 0.5: 0.6680}),
    _structured("Switch prescribed", "0.3", 0.7891, {36 / 255: 0.7549, 0.5: 0.6504}),
    _ours("certified_mnist", "mnist"),
    _ours("certified_mnist_wide", "mnist"),
    _ours("certified_cifar10", "cifar10"),
)
