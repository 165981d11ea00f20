"""The protocols quick, standard and full: their attacks and checks."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float, Int

from jnode.attacks import PGD, Budget, GaussianNoise, Trial, autoattack, make
from jnode.attacks.losses import Classifier
from jnode.evaluation import checks
from jnode.evaluation.transfers import SURROGATES, Transfer
from jnode.models.batched import batched

if TYPE_CHECKING:
    from jnode.models import ODEClassifier

DIGITS = {"linf": (0.1, 0.2, 0.3), "l2": (0.5, 1.0), "l1": (10.0,)}
PHOTOGRAPHS = {"linf": (2 / 255, 8 / 255), "l2": (36 / 255, 0.5), "l1": (12.0,)}
BUDGETS: dict[str, dict[str, tuple[float, ...]]] = {
    "mnist5k": DIGITS,
    "mnist": DIGITS,
    "fashion_mnist": DIGITS,
    "cifar10": PHOTOGRAPHS,
    "cifar100": PHOTOGRAPHS,
    "svhn_cropped": PHOTOGRAPHS,
}
"""The budgets that the literature reports for each data set, in pixel units."""


def _few_steps(budget: Budget, classes: int) -> Sequence[Trial]:
    found = [
        make("pgd", steps=20),
        make("apgd-ce", steps=20),
        make("apgd-t", steps=20, restarts=min(3, classes - 1)),
        make("square", steps=200),
    ]
    return [Trial(a, budget) for a in found if a.least_classes <= classes]


def _standard(budget: Budget, classes: int) -> Sequence[Trial]:
    return autoattack(budget, classes=classes)


def _standard_and_plus(budget: Budget, classes: int) -> Sequence[Trial]:
    plus = autoattack(budget, classes=classes, version="plus")
    return [*_standard(budget, classes), *plus]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A named evaluation.

    - `num_examples`: the default number of test images; `None` for all.
    - `attacks`: the white- and black-box attacks for a budget and a number of classes,
        the cheapest first.
    - `surrogates`: the kinds of surrogate models for transferred attacks
        (`SURROGATES`).
    - `transfer`: steps and restarts of each transferred attack.
    - `checked`: the number of images for the checks.
    - `long_pgd`: the steps of the PGD that is compared with PGD-20, if any.
    """

    num_examples: int | None
    attacks: Callable[[Budget, int], Sequence[Trial]]
    surrogates: tuple[str, ...]
    transfer: tuple[int, int]
    checked: int
    long_pgd: int | None = None


PROTOCOLS = {
    "quick": Protocol(
        num_examples=200,
        attacks=_few_steps,
        surrogates=("fixed", "encoder"),
        transfer=(20, 1),
        checked=64,
    ),
    "standard": Protocol(
        num_examples=1000,
        attacks=_standard,
        surrogates=SURROGATES,
        transfer=(40, 1),
        checked=200,
    ),
    "full": Protocol(
        num_examples=None,
        attacks=_standard_and_plus,
        surrogates=SURROGATES,
        transfer=(100, 3),
        checked=200,
        long_pgd=1000,
    ),
}


def budgets(
    dataset: str, norm: str | None = None, epsilons: Sequence[float] = ()
) -> list[Budget]:
    """The budgets to attack with, in increasing order for each norm.

    **Arguments:** the data set, whose usual budgets are the default; `norm` ("linf",
    "l2" or "l1"), to use only that one, by default Linf and L2; `epsilons` in that norm
    (by default Linf), to replace them.

    **Raises:** `ValueError` for another norm or an invalid epsilon.
    """
    usual = BUDGETS.get(dataset, PHOTOGRAPHS)
    if norm is not None and norm not in usual:
        raise ValueError(f"norm must be one of {', '.join(usual)}, not {norm!r}.")
    if epsilons:
        return [Budget(norm or "linf", epsilon) for epsilon in sorted(epsilons)]
    norms = ("linf", "l2") if norm is None else (norm,)
    return [Budget(norm, epsilon) for norm in norms for epsilon in sorted(usual[norm])]


def comparison(dataset: str) -> list[Trial]:
    """Noise, FGSM and PGD at the usual budgets of a data set, the weakest first.

    Each is meant to run on all samples, so that they can be compared: three levels of
    Gaussian noise, FGSM at the smallest Linf budget, and PGD at each budget, with 40
    steps (Linf) or 20 (L2).
    """
    usual, steps = budgets(dataset), {"linf": 40, "l2": 20}
    return [
        *(Trial(GaussianNoise(sigma / 255)) for sigma in (50, 75, 100)),
        Trial(make("fgsm"), usual[0]),
        *(Trial(make("pgd", steps=steps[b.norm]), b) for b in usual),
    ]


def plan(
    protocol: Protocol,
    budgets: Sequence[Budget],
    surrogates: Mapping[str, Classifier],
    *,
    classes: int,
) -> list[Trial]:
    """The attacks of a protocol in their order: budget by budget, transfers last.

    Attacks that need more classes than the model has are left out, which the check of
    outputs flags.
    """
    steps, restarts = protocol.transfer
    through = [
        Transfer(source=source, via=via, steps=steps, restarts=restarts)
        for via, source in surrogates.items()
    ]
    trials: list[Trial] = []
    for budget in budgets:
        trials += protocol.attacks(budget, classes)
        trials += [Trial(transfer, budget) for transfer in through]
    return trials


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

    **Arguments:** the model; images [n, height, width, channels] and labels [n]; the
    protocol; the budget of the attacked images; the seed; `keep`, a function of each
    check's name and of the function that runs it, which may store the result.

    **Returns:** for each check its numbers, its `summary` in words, and its `flags`.
    """
    x = jnp.asarray(images[: protocol.checked])
    y = jnp.asarray(labels[: protocol.checked])
    whole = batched(model)
    attack, key = PGD(steps=20), jr.key(seed)

    @functools.cache
    def attacked() -> jax.Array:
        found = attack(whole, x, y, budget, key=key)
        budget.check(attack.name, x, found)
        return found

    def gradient() -> dict[str, Any]:
        found = checks.gradient(whole, x, y, seed=seed)
        if model.solver.adaptive and not found["flags"]:
            found["held_steps"] = checks.held_steps(model, x, y)
            found["summary"] += (
                f" From the gradient of the steps that the solve took it differs by "
                f"{found['held_steps']:.0e}."
            )
        return found

    every: dict[str, Callable[[], dict[str, Any]]] = {
        "adjoint": lambda: checks.adjoint(model.solver),
        "gradient": gradient,
        "batch_independence": lambda: checks.batch_independence(whole, x, seed=seed),
        "tolerance": lambda: checks.tolerance(model, x, attacked()),
        "nfe": lambda: checks.nfe_under_attack(model, x, attacked(), budget, key=key),
    }
    if protocol.long_pgd is not None:
        steps = (20, protocol.long_pgd)
        every["convergence"] = lambda: checks.convergence(
            whole, x, y, budget, key=key, steps=steps
        )
    return {name: keep(name, make) for name, make in every.items()}
