"""The progress of an evaluation."""

from collections.abc import Sequence

from tqdm import tqdm

from jnode.attacks.base import AbstractAttack
from jnode.evaluation.cost import Cost, programs


def describe(attack: AbstractAttack) -> str:
    """For people: `pgd-40 linf 0.1`, `pgd-40 linf 0.1 via rk4x8`."""
    steps = f"-{int(attack.steps)}" if attack.steps > 1 else ""
    budget = f"{attack.norm} {float(attack.epsilon):.3g}"
    return f"{attack.name}{steps} {budget}" + (
        f" via {attack.via}" if attack.via else ""
    )


class Bar:
    """A progress bar that knows what each attack costs and how many samples stand."""

    def __init__(
        self,
        attacks: Sequence[AbstractAttack],
        n: int,
        length: int,
        cost: Cost,
        progress: bool,
    ):
        self.attacks, self.length, self.cost = attacks, length, cost
        self.now, self.compiling = None, 0
        self.bar = tqdm(
            total=self._left(0, n),
            disable=not progress,
            smoothing=0.05,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}, left {remaining}",
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def _left(self, i, n):
        rest = self.attacks[i:]
        compiling = len(programs(rest) - programs(self.attacks[:i]))
        work = -(-n // self.length) * sum(self.cost.of(a) for a in rest)
        return work + compiling * self.cost.compilation

    def begin(self, i, stand):
        self.now = self.attacks[i]
        self.compiling = len(programs([self.now]) - programs(self.attacks[:i]))
        self.bar.total = self.bar.n + self._left(i, stand)
        self.bar.set_description(f"{describe(self.now)}, {stand} stand")

    def step(self, part):
        self.bar.update(self.cost.of(part) + self.compiling * self.cost.compilation)
        self.compiling = 0
