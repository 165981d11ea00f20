"""AutoAttack: which attacks, with which parameters (Croce & Hein, ICML 2020)."""

from collections.abc import Sequence

from jnode.attacks.base import AbstractAttack
from jnode.attacks.registry import make

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "custom": (),
}
"""Versions of the ensemble, and the attacks of each in order."""

TARGETS, STARTS, QUERIES = 9, 5, 5000


def autoattack(
    epsilon: float,
    *,
    norm: str = "linf",
    version: str = "standard",
    classes: int = 10,
    custom: Sequence[str] = (),
) -> tuple[AbstractAttack, ...]:
    """The attacks of AutoAttack in their order, to be given to `run`.

    100 iterations each, 5,000 queries for Square, as published:

    - "standard": APGD-CE, APGD-T and FAB-T towards 9 classes, Square.
    - "plus": APGD-CE, APGD-DLR and FAB from 5 starts each, Square, APGD-T, FAB-T.
    - "rand": APGD-CE and APGD-DLR, for a model that draws random numbers, wrapped in
        `RandomModel`, which averages over 20 draws.
    - "custom": those of these attacks that `custom` names, in its order.

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
    if (version == "custom") != bool(custom):
        raise ValueError(
            "custom names the attacks of version 'custom', and of no other; "
            f"version is {version!r} and custom is {tuple(custom)!r}."
        )
    if classes < 2:
        raise ValueError(f"classes must be at least 2, not {classes}.")
    starts = STARTS if version == "plus" else 1
    targets = min(TARGETS, classes - 1)
    known: dict[str, dict[str, int]] = {
        "apgd-ce": {"restarts": starts},
        "apgd-dlr": {"restarts": starts},
        "apgd-t": {"restarts": targets},
        "fab": {"restarts": starts},
        "fab-t": {"restarts": targets},
        "square": {"steps": QUERIES},
    }
    unknown = sorted(set(custom) - set(known))
    if unknown:
        raise ValueError(
            f"custom must name some of {', '.join(known)}, not {', '.join(unknown)}."
        )
    chosen = [
        make(name, epsilon=epsilon, norm=norm, **known[name])
        for name in custom or VERSIONS[version]
    ]
    return tuple(attack for attack in chosen if attack.least_classes <= classes)
