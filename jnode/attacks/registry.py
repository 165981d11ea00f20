"""Attacks by name: one, or those of AutoAttack (Croce & Hein, ICML 2020)."""

from jnode.attacks.apgd import APGDCE, APGDDLR, APGDT
from jnode.attacks.base import AbstractAttack
from jnode.attacks.fab import FAB, FABT
from jnode.attacks.simple import FGSM, PGD, GaussianNoise
from jnode.attacks.square import Square

_ITERATED = {
    "pgd": PGD,
    "apgd-ce": APGDCE,
    "apgd-dlr": APGDDLR,
    "apgd-t": APGDT,
    "fab": FAB,
    "fab-t": FABT,
    "square": Square,
}
ATTACKS = ("gaussian", "fgsm", *_ITERATED)
"""The known attacks."""

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
"""Versions of AutoAttack, and the attacks of each in order."""

TARGETS, STARTS, QUERIES = 9, 5, 5000


def make(
    name: str,
    *,
    epsilon: float,
    norm: str = "linf",
    steps: int | None = None,
    restarts: int | None = None,
) -> AbstractAttack:
    """The attack of this name.

    **Arguments:** the name; the budget in pixel units (of "gaussian" the standard
    deviation); its norm; the number of steps and of random starts, where it has some:
    by default those of its class.

    **Raises:** `ValueError` for another name, with those there are, and for a budget
    that makes no sense.
    """
    _check(name)
    if name == "gaussian":
        return GaussianNoise(epsilon)
    if name == "fgsm":
        return FGSM(epsilon, norm=norm)
    counts = {"steps": steps, "restarts": restarts}
    given = {k: v for k, v in counts.items() if v is not None}
    return _ITERATED[name](epsilon, norm=norm, **given)


def parse(spec: str) -> AbstractAttack:
    """An attack from `name:norm:epsilon[:steps[:restarts]]`, or `gaussian:sigma`.

    Numbers may be fractions: `pgd:linf:8/255:40`, `gaussian:50/255`.

    **Raises:** `ValueError` for anything else.
    """
    name, *rest = spec.split(":")
    _check(name)
    if name == "gaussian" and len(rest) == 1:
        rest = ["linf", *rest]
    elif name == "gaussian" or not 2 <= len(rest) <= 4:
        raise ValueError(
            f"attack {spec!r} must read name:norm:epsilon[:steps[:restarts]], for "
            "example pgd:linf:0.1:40, or gaussian:sigma, gaussian:0.1."
        )
    try:
        epsilon = number(rest[1])
        counts = [int(count) for count in rest[2:]]
    except ValueError as error:
        raise ValueError(f"attack {spec!r} holds something not a number.") from error
    named = dict(zip(("steps", "restarts"), counts, strict=False))
    return make(name, epsilon=epsilon, norm=rest[0], **named)


def number(text: str) -> float:
    """A number or a fraction, such as `36/255`; `ValueError` for anything else."""
    numerator, _, denominator = text.partition("/")
    divisor = float(denominator) if denominator else 1.0
    if divisor == 0:
        raise ValueError("division by zero")
    return float(numerator) / divisor


def _check(name: str) -> None:
    if name not in ATTACKS:
        raise ValueError(f"attack must be one of {', '.join(ATTACKS)}, not {name!r}.")


def autoattack(
    epsilon: float,
    *,
    norm: str = "linf",
    version: str = "standard",
    classes: int = 10,
) -> tuple[AbstractAttack, ...]:
    """The attacks of AutoAttack in their order, to be given to `run`.

    100 iterations each, 5,000 queries for Square, as published:

    - "standard": APGD-CE, APGD-T and FAB-T towards 9 classes, Square.
    - "plus": APGD-CE, APGD-DLR and FAB from 5 starts each, Square, APGD-T, FAB-T.
    - "rand": APGD-CE and APGD-DLR, for a model that draws random numbers, wrapped in
        `RandomModel`, which averages over 20 draws.

    **Arguments:** the budget in pixel units; its norm, "linf" or "l2"; the version; the
    model's number of `classes`. With fewer than ten, all others are targets. APGD-T
    needs 4 classes and APGD-DLR 3: they are left out where there are fewer, and the
    rest must do.

    **Raises:** `ValueError` for anything else.
    """
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
    chosen = [
        make(name, epsilon=epsilon, norm=norm, **counts[name])
        for name in VERSIONS[version]
    ]
    return tuple(attack for attack in chosen if attack.least_classes <= classes)
