"""What is run under the name quick, standard or full."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from jnode.attacks import AbstractAttack, autoattack, make
from jnode.attacks.base import Classifier
from jnode.evaluation.transfers import TWINS, Transfer

Budget = tuple[str, float]
"""A norm and an epsilon."""
DIGITS = {"linf": (0.1, 0.2, 0.3), "l2": (0.5, 1.0)}
PHOTOGRAPHS = {"linf": (2 / 255, 8 / 255), "l2": (36 / 255, 0.5)}
BUDGETS: dict[str, dict[str, tuple[float, ...]]] = {
    "mnist5k": DIGITS,
    "mnist": DIGITS,
    "fashion_mnist": DIGITS,
    "cifar10": PHOTOGRAPHS,
    "cifar100": PHOTOGRAPHS,
    "svhn_cropped": PHOTOGRAPHS,
}
"""The budgets that the literature reports, a data set, in pixel units."""


def _few_steps(epsilon: float, norm: str, classes: int) -> Sequence[AbstractAttack]:
    found = [
        make("pgd", epsilon=epsilon, norm=norm, steps=20),
        make("apgd-ce", epsilon=epsilon, norm=norm, steps=20),
        make(
            "apgd-t", epsilon=epsilon, norm=norm, steps=20, restarts=min(3, classes - 1)
        ),
        make("square", epsilon=epsilon, norm=norm, steps=200),
    ]
    return [attack for attack in found if attack.least_classes <= classes]


def _standard(epsilon: float, norm: str, classes: int) -> Sequence[AbstractAttack]:
    return autoattack(epsilon, norm=norm, classes=classes)


def _standard_and_plus(
    epsilon: float, norm: str, classes: int
) -> Sequence[AbstractAttack]:
    plus = autoattack(epsilon, norm=norm, classes=classes, version="plus")
    return [*_standard(epsilon, norm, classes), *plus]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """An evaluation with a name.

    - `num_examples`: how many test images, unless told; `None` for all.
    - `attacks`: the white- and black-box attacks of an epsilon, a norm and a number of
        classes, the cheapest first.
    - `twins`: through which models attacks are transferred (`TWINS`).
    - `transfer`: steps and restarts of each transferred attack.
    - `checked`: how many images the checks look at.
    - `longer`: the steps of the PGD that stands beside PGD-20, if any.
    """

    num_examples: int | None
    attacks: Callable[[float, str, int], Sequence[AbstractAttack]]
    twins: tuple[str, ...]
    transfer: tuple[int, int]
    checked: int
    longer: int | None = None


PROTOCOLS = {
    "quick": Protocol(
        num_examples=200,
        attacks=_few_steps,
        twins=("fixed", "encoder"),
        transfer=(20, 1),
        checked=64,
    ),
    "standard": Protocol(
        num_examples=1000,
        attacks=_standard,
        twins=TWINS,
        transfer=(40, 1),
        checked=200,
    ),
    "full": Protocol(
        num_examples=None,
        attacks=_standard_and_plus,
        twins=TWINS,
        transfer=(100, 3),
        checked=200,
        longer=1000,
    ),
}


def budgets(
    dataset: str, norm: str | None = None, epsilons: Sequence[float] = ()
) -> list[Budget]:
    """The budgets to attack with, each norm's in growing order.

    **Arguments:** the data set, whose usual budgets are taken unless `norm` ("linf" or
    "l2") or `epsilons` (of that norm, by default Linf) say otherwise.

    **Raises:** `ValueError` for another norm.
    """
    usual = BUDGETS.get(dataset, PHOTOGRAPHS)
    if norm is not None and norm not in usual:
        raise ValueError(f"norm must be one of {', '.join(usual)}, not {norm!r}.")
    if epsilons:
        return [(norm or "linf", epsilon) for epsilon in sorted(epsilons)]
    norms = usual if norm is None else (norm,)
    return [(norm, epsilon) for norm in norms for epsilon in sorted(usual[norm])]


def comparison(dataset: str) -> list[AbstractAttack]:
    """Noise, FGSM and PGD at the usual budgets of a data set, weak ones first.

    They are meant to be run on all samples each, so that they can be compared: three
    levels of Gaussian noise, FGSM at the least Linf budget, and PGD at each budget, of
    40 steps (Linf) or 20 (L2).
    """
    usual = BUDGETS.get(dataset, PHOTOGRAPHS)
    return [
        *(make("gaussian", epsilon=sigma / 255) for sigma in (50, 75, 100)),
        make("fgsm", epsilon=min(usual["linf"])),
        *(make("pgd", epsilon=epsilon, steps=40) for epsilon in usual["linf"]),
        *(make("pgd", epsilon=epsilon, norm="l2", steps=20) for epsilon in usual["l2"]),
    ]


def plan(
    protocol: Protocol,
    budgets: Sequence[Budget],
    twins: Mapping[str, Classifier],
    *,
    classes: int,
) -> list[AbstractAttack]:
    """The attacks of a protocol in their order: budget by budget, transfers last.

    Attacks that need more classes than there are, are left out; the check of outputs
    flags that.
    """
    attacks: list[AbstractAttack] = []
    steps, restarts = protocol.transfer
    for norm, epsilon in budgets:
        attacks += protocol.attacks(epsilon, norm, classes)
        attacks += [
            Transfer(source, via, epsilon, norm=norm, steps=steps, restarts=restarts)
            for via, source in twins.items()
        ]
    return attacks
