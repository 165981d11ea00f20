"""What is run under the name quick, standard or full: attacks, and checks."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float, Int

from jnode.attacks import PGD, AbstractAttack, autoattack, check_budget, make
from jnode.attacks.losses import Classifier
from jnode.evaluation import checks
from jnode.evaluation.transfers import TWINS, Transfer
from jnode.models.batched import batched

if TYPE_CHECKING:
    from jnode.models import ODEClassifier

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
            Transfer(
                epsilon,
                source=source,
                via=via,
                norm=norm,
                steps=steps,
                restarts=restarts,
            )
            for via, source in twins.items()
        ]
    return attacks


Keep = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]


def check_model(
    model: "ODEClassifier",
    images: Float[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, " n"],
    protocol: Protocol,
    budget: Budget,
    *,
    seed: int = 0,
    keep: Keep = lambda name, make: make(),
) -> dict[str, dict[str, Any]]:
    """Runs each check on the first images.

    **Arguments:** the model; images and labels; the protocol, which says how many of
    them, and how long the longest PGD is; the budget of attacked images; the seed;
    `keep`, which is given each check's name and the function that runs it, and may
    remember what was found.

    **Returns:** per check its numbers, what it `says` in words, and its `flags`.
    """
    x = jnp.asarray(images[: protocol.checked])
    y = jnp.asarray(labels[: protocol.checked])
    whole = batched(model)
    norm, epsilon = budget
    attack, key = PGD(epsilon, norm=norm, steps=20), jr.key(seed)

    @functools.cache
    def attacked() -> jax.Array:
        found = attack(whole, x, y, key=key)
        check_budget(attack, x, found)
        return found

    def gradient() -> dict[str, Any]:
        found = checks.gradient(whole, x, y, seed=seed)
        if model.solver.adaptive and not found["flags"]:
            found["held_steps"] = checks.held_steps(model, x, y)
            found["says"] += (
                f" From the gradient of the steps that the solve took it differs by "
                f"{found['held_steps']:.0e}."
            )
        return found

    every: dict[str, Callable[[], dict[str, Any]]] = {
        "adjoint": lambda: checks.adjoint(model.solver),
        "gradient": gradient,
        "batch_mates": lambda: checks.batch_mates(whole, x, seed=seed),
        "tolerance": lambda: checks.tolerance(model, x, attacked()),
        "work": lambda: checks.work(model, x, attacked(), attack, key=key),
    }
    if protocol.longer is not None:
        steps = (20, protocol.longer)
        every["longer"] = lambda: checks.longer(
            whole, x, y, epsilon=epsilon, norm=norm, key=key, steps=steps
        )
    return {name: keep(name, make) for name, make in every.items()}
