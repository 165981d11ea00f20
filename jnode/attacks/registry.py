"""Attacks by name: one, or those of AutoAttack (Croce & Hein, ICML 2020)."""

from collections.abc import Iterable
from typing import Any

from jnode.attacks.apgd import APGDCE, APGDDLR, APGDT
from jnode.attacks.base import AbstractAttack, check_budget
from jnode.attacks.budget import Budget
from jnode.attacks.fab import FAB, FABT
from jnode.attacks.noise import GaussianNoise
from jnode.attacks.simple import FGSM, PGD
from jnode.attacks.square import Square
from jnode.attacks.trial import Trial

ATTACKS: dict[str, type[AbstractAttack]] = {
    "fgsm": FGSM,
    "pgd": PGD,
    "apgd-ce": APGDCE,
    "apgd-dlr": APGDDLR,
    "apgd-t": APGDT,
    "fab": FAB,
    "fab-t": FABT,
    "square": Square,
}
"""The known attacks."""

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
"""Versions of AutoAttack, and the attacks of each in order."""

TARGETS, STARTS, QUERIES = 9, 5, 5000


def make(
    name: str, *, steps: int | None = None, restarts: int | None = None
) -> AbstractAttack:
    """The attack of this name.

    **Arguments:** the name; the number of steps and of restarts, each at least 1 and by
    default that of its class; "fgsm" has one of each.

    **Raises:** `ValueError` for an unknown name, listing the known ones, and for a
    number below 1.
    """
    _check(name, ATTACKS)
    counts = {"steps": steps, "restarts": restarts}
    given: Any = {k: v for k, v in counts.items() if v is not None and name != "fgsm"}
    return ATTACKS[name](**given)


def parse(spec: str) -> Trial:
    """An attack and its budget from `name:norm:epsilon[:steps[:restarts]]`, or noise
    from `gaussian:sigma`.

    Numbers may be fractions: `pgd:linf:8/255:40`, `gaussian:50/255`.

    **Raises:** `ValueError` for anything else.
    """
    name, *rest = spec.split(":")
    noise = name == GaussianNoise.name
    _check(name, (GaussianNoise.name, *ATTACKS))
    if not (len(rest) == 1 if noise else 2 <= len(rest) <= 4):
        raise ValueError(
            f"attack {spec!r} must read name:norm:epsilon[:steps[:restarts]], for "
            "example pgd:linf:0.1:40, or gaussian:sigma, gaussian:0.1."
        )
    try:
        size = number(rest[0 if noise else 1])
        counts = [int(count) for count in rest[2:]]
    except ValueError as error:
        raise ValueError(
            f"attack {spec!r} must have numbers behind its names, for example "
            f"pgd:linf:8/255:40 or gaussian:0.1: {error}"
        ) from error
    if noise:
        return Trial(GaussianNoise(size))
    named = dict(zip(("steps", "restarts"), counts, strict=False))
    return Trial(make(name, **named), Budget(rest[0], size))


def number(text: str) -> float:
    """The value of a number or a fraction, such as `36/255`.

    **Raises:** `ValueError` for anything else.
    """
    numerator, _, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"numbers must be written as 0.5 or 36/255, not {text!r}."
        ) from None


def _check(name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ValueError(f"attack must be one of {', '.join(known)}, not {name!r}.")


def autoattack(
    budget: Budget, *, version: str = "standard", classes: int = 10
) -> tuple[Trial, ...]:
    """The attacks of AutoAttack in their order, within this budget, for `run`.

    100 iterations each, 5,000 queries for Square, as published:

    - "standard": APGD-CE, APGD-T and FAB-T towards 9 classes, Square.
    - "plus": APGD-CE, APGD-DLR and FAB from 5 starts each, Square, APGD-T, FAB-T.
    - "rand": APGD-CE and APGD-DLR, for a model that draws random numbers, wrapped in
        `RandomModel`, which averages over 20 draws.

    **Arguments:** the budget; the version; the model's number of `classes`. With fewer
    than ten, all other classes are targets. APGD-T needs 4 classes and APGD-DLR 3; with
    fewer classes they are left out.

    **Raises:** `ValueError` for another version or too few classes; `TypeError` if
    `budget` is not a `Budget`.
    """
    check_budget(budget)
    if version not in VERSIONS:
        raise ValueError(
            f"version must be one of {', '.join(VERSIONS)}, not {version!r}."
        )
    if classes < 2:
        raise ValueError(f"classes must be at least 2, not {classes}.")
    starts = STARTS if version == "plus" else 1
    targets = min(TARGETS, classes - 1)
    counts: dict[str, dict[str, int]] = {
        "apgd-ce": {"restarts": starts},
        "apgd-dlr": {"restarts": starts},
        "apgd-t": {"restarts": targets},
        "fab": {"restarts": starts},
        "fab-t": {"restarts": targets},
        "square": {"steps": QUERIES},
    }
    chosen = [make(name, **counts[name]) for name in VERSIONS[version]]
    return tuple(
        Trial(attack, budget) for attack in chosen if attack.least_classes <= classes
    )
