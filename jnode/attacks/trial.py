"""Trials for `run`: an attack with its budget, or noise."""

from typing import NamedTuple

import numpy as np

from jnode.attacks.base import AbstractAttack, check_budget
from jnode.attacks.budget import Budget
from jnode.attacks.noise import GaussianNoise


class Trial(NamedTuple):
    """An attack and its budget, or noise, which has none.

    A plain pair `(attack, budget)` is accepted wherever a trial is.
    """

    attack: AbstractAttack | GaussianNoise
    budget: Budget | None = None

    @property
    def norm(self) -> str:
        """The budget's norm; "sigma" for noise, which has none."""
        return "sigma" if self.budget is None else self.budget.norm

    @property
    def epsilon(self) -> np.ndarray:
        """The budget's epsilon, a number or one for each image; the sigma of noise."""
        if self.budget is None:
            assert isinstance(self.attack, GaussianNoise)
            return np.asarray(self.attack.sigma)
        return np.asarray(self.budget.epsilon)

    def parts(self) -> tuple["Trial", ...]:
        """The attack's restarts or targets, each in the same budget."""
        return tuple(Trial(part, self.budget) for part in self.attack.parts())


def describe(trial: Trial) -> str:
    """A label such as `pgd-40 linf 0.1` or `pgd-40 linf 0.1 via rk4x8`."""
    attack = trial.attack
    steps = f"-{int(attack.steps)}" if attack.steps > 1 else ""
    through = f" via {attack.via}" if attack.via else ""
    low, high = np.min(trial.epsilon), np.max(trial.epsilon)
    epsilon = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    return f"{attack.name}{steps} {trial.norm} {epsilon}{through}"


Pair = Trial | tuple[AbstractAttack, Budget]
"""What is accepted as a trial."""


def as_trial(trial: Pair) -> Trial:
    """The trial, which may be given as a plain pair.

    **Raises:** `TypeError` for anything else.
    """
    if not isinstance(trial, tuple):
        raise TypeError(
            "trials must be pairs of an attack and its budget, for example "
            f'(PGD(), Budget("linf", 0.1)), not {type(trial).__name__}.'
        )
    trial = trial if isinstance(trial, Trial) else Trial(*trial)
    if isinstance(trial.attack, AbstractAttack):
        check_budget(trial.budget)
    elif not isinstance(trial.attack, GaussianNoise):
        raise TypeError(
            f"trials must begin with an attack, not {type(trial.attack).__name__}."
        )
    elif trial.budget is not None:
        raise TypeError(
            "trials of noise must have no budget, since sigma is its size: write "
            "Trial(GaussianNoise(0.1))."
        )
    return trial
