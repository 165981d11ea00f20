"""One row of a study: what is trained, how it is solved, how it is attacked."""

import dataclasses

from jnode.solvers import Solver
from jnode.train import TrainConfig

PARTS = ("models", "lipschitz", "solvers", "steps")
"""The questions: which model, which constant, which solver, which number of steps."""

Budget = tuple[str, float]
"""A norm and an epsilon."""


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is measured of a trained model.

    - `alone`: attacks as `jnode.attacks.parse` reads them, each on all of the first
        `num_alone` test images.
    - `via`: a solver through which PGD is made too and carried over, at the budgets of
        `alone`; the weights are the same.
    - `budgets`: norms and epsilons of AutoAttack, whose attacks run in turn on what
        still stands of the first `num_ensemble` test images.
    - `radii`: L2 radii at which certified accuracy is told, of all test images.
    - `stretch`: whether to search for the strongest stretch (slow).
    - `adaptive`: an adaptive solver whose evaluations are counted on the same weights.
    """

    alone: tuple[str, ...] = ()
    num_alone: int = 1000
    via: Solver | None = None
    budgets: tuple[Budget, ...] = ()
    num_ensemble: int = 200
    radii: tuple[float, ...] = ()
    stretch: bool = False
    adaptive: Solver | None = None


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of a study.

    - `part`: of what table and figure it is a row: one of `PARTS`.
    - `model`, `training`: what tables call the model and its training.
    - `train`: the whole training run, data and seed included.
    - `solver`: of the evaluation, if another than the one trained with.
    - `measures`: what to measure.
    """

    part: str
    model: str
    training: str
    train: TrainConfig
    measures: Measures
    solver: Solver | None = None

    @property
    def trained(self) -> str:
        """The name of the run that is trained; cells of one name share it."""
        parts = (self.train.data.name, self.model, self.training)
        return "-".join((*parts, f"seed{self.train.seed}"))

    @property
    def name(self) -> str:
        """The name of the cell's run folder."""
        if self.solver is None:
            return self.trained
        solver = self.solver
        detail = solver.steps if solver.steps else f"{solver.tolerances[0]:g}"
        return f"{self.trained}--{solver.name}-{detail}"

    @property
    def evaluated(self) -> Solver:
        """The solver that is evaluated."""
        return self.train.solver if self.solver is None else self.solver
