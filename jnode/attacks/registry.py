"""Attacks by name."""

from jnode.attacks.apgd import APGDCE, APGDDLR, APGDT
from jnode.attacks.base import AbstractAttack
from jnode.attacks.carlini_wagner import CarliniWagner
from jnode.attacks.corruptions import CORRUPTIONS
from jnode.attacks.deepfool import DeepFool
from jnode.attacks.fab import FAB, FABT
from jnode.attacks.fgsm import FGSM
from jnode.attacks.mifgsm import MIFGSM
from jnode.attacks.noise import GaussianNoise, SaltAndPepperNoise, UniformNoise
from jnode.attacks.pgd import PGD
from jnode.attacks.square import Square

_NOISE = {
    "gaussian": GaussianNoise,
    "uniform": UniformNoise,
    "salt-and-pepper": SaltAndPepperNoise,
    **{corruption.name: corruption for corruption in CORRUPTIONS},
}
_ITERATED = {
    "pgd": PGD,
    "mi-fgsm": MIFGSM,
    "cw": CarliniWagner,
    "deepfool": DeepFool,
    "apgd-ce": APGDCE,
    "apgd-dlr": APGDDLR,
    "apgd-t": APGDT,
    "fab": FAB,
    "fab-t": FABT,
    "square": Square,
}
ATTACKS = (*_NOISE, "fgsm", *_ITERATED)
"""The known attacks."""


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
    deviation, of "salt-and-pepper" the share of the pixels, of a corruption its
    severity, 1 to 5); its norm; the number of steps and of random starts, where it has
    some: by default those of its class.

    **Raises:** `ValueError` for another name, with those there are, and for a budget
    that makes no sense.
    """
    _check(name)
    if name in _NOISE:
        return _NOISE[name](epsilon)
    if name == "fgsm":
        return FGSM(epsilon, norm=norm)
    counts = {"steps": steps, "restarts": restarts}
    given = {k: v for k, v in counts.items() if v is not None}
    return _ITERATED[name](epsilon, norm=norm, **given)


def parse(spec: str) -> AbstractAttack:
    """An attack from `name:norm:epsilon[:steps[:restarts]]`, noise from `name:amount`.

    Numbers may be fractions: `pgd:linf:8/255:40`, `gaussian:50/255`.

    **Raises:** `ValueError` for anything else.
    """
    name, *rest = spec.split(":")
    _check(name)
    if name in _NOISE and len(rest) == 1:
        rest = ["linf", *rest]
    elif name in _NOISE or not 2 <= len(rest) <= 4:
        raise ValueError(
            f"attack {spec!r} must read name:norm:epsilon[:steps[:restarts]], for "
            "example pgd:linf:0.1:40, or, of noise, name:amount, gaussian:0.1."
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
