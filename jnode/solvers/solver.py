"""The description of a numerical solver: its method, steps and adjoint."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import diffrax
import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from jnode._checks import check_choice, check_positive
from jnode.solvers.ladder import first_steps
from jnode.solvers.schedule import Schedule, ends_at, plan
from jnode.solvers.tableaus import ADAPTIVE, SOLVERS, tableau

ADJOINTS = ("direct", "checkpointed", "backsolve")
CONTROLLERS = ("pid", "ladder", "halving")


@dataclasses.dataclass(frozen=True)
class Solver:
    """A numerical solver: fixed-step with `steps` or `grid`, else adaptive.

    **Arguments:**

    - `name`: euler, heun, midpoint, rk4, bosh3, tsit5, dopri5 or dopri8.
    - `steps`: the number of equal steps, at least 1; `None` for adaptive steps.
    - `grid`: instead of equal steps, the points at which they end: increasing fractions
        of the interval, from 0 to 1 (`freeze` computes one).
    - `rtol`, `atol`: an adaptive solver's relative and absolute tolerance, positive.
        By default 1e-3 and 1e-4.
    - `max_steps`: an adaptive solver's limit, past which a solve raises.
    - `controller`: the step size controller of an adaptive solver. "pid" is Diffrax's.
        "ladder" takes dyadic parts of the interval, each as long as the one before,
        half as long or twice as long, and such a solve can be certified; so can one by
        "halving", whose steps never grow again (`jnode.solvers.LadderController`).
    - `first_step`: the first and longest step of "ladder" and "halving", a fraction 1/m
        of the interval, or of the time between two jumps of the field.
    - `adjoint`: how gradients are computed: "direct" differentiates the numerical solve
        and stores its steps, "checkpointed" recomputes parts of it, which saves memory
        if there are many steps, "backsolve" solves the continuous adjoint equations
        backwards (it stores no step, and gives this solve's gradient only
        approximately).

    **Raises:** `ValueError` with one sentence for anything else.
    """

    name: str = "rk4"
    steps: int | None = None
    grid: tuple[float, ...] | None = None
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 256
    adjoint: str = "direct"
    controller: str = "pid"
    first_step: float = 1.0

    def __post_init__(self):
        if self.name not in SOLVERS:
            known = ", ".join(SOLVERS)
            raise ValueError(f"solver name must be one of {known}, not {self.name!r}.")
        if self.adjoint not in ADJOINTS:
            known = ", ".join(ADJOINTS)
            raise ValueError(f"adjoint must be one of {known}, not {self.adjoint!r}.")
        if self.grid is not None:
            self._check_grid()
        self._check_controller()
        if self.steps is not None:
            check_positive(steps=self.steps)
            if self.rtol is not None or self.atol is not None:
                raise ValueError(
                    f"{self.name} with steps={self.steps} has fixed steps, which take "
                    "no rtol or atol: leave out either the steps or the tolerances."
                )
        elif self.name not in ADAPTIVE:
            raise ValueError(
                f"{self.name} has no error estimate, so it cannot be adaptive: "
                "give steps and no tolerance, or choose one of "
                f"{', '.join(ADAPTIVE)}."
            )
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, not {value!r}.")
        if not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise ValueError(
                f"max_steps must be an integer of at least 1, not {self.max_steps!r}."
            )

    def _check_controller(self):
        check_choice("controller", self.controller, CONTROLLERS)
        first_steps(self.first_step)  # raises unless it is 1/m
        if self.ladder and self.steps is not None:
            raise ValueError(
                f"controller must be left out beside fixed steps, not "
                f"{self.controller!r}: nothing chooses them."
            )
        if not self.ladder and self.first_step != 1:
            raise ValueError(
                "first_step must be left out unless controller is 'ladder' or "
                f"'halving'; it is {self.first_step!r}."
            )

    def _check_grid(self):
        # A configuration file gives a list.
        grid = tuple(float(share) for share in self.grid or ())
        object.__setattr__(self, "grid", grid)
        if len(grid) < 2 or grid[0] != 0 or grid[-1] != 1 or np.any(np.diff(grid) <= 0):
            raise ValueError(
                f"grid must increase from 0 to 1, as (0, 0.3, 1) does; this is {grid}."
            )
        if self.rtol is not None or self.atol is not None:
            raise ValueError(
                f"{self.name} on a grid has fixed steps, which take no rtol or atol: "
                "leave out either the grid or the tolerances."
            )
        if self.steps not in (None, len(grid) - 1):
            raise ValueError(
                f"steps must be left out beside a grid, which has {len(grid) - 1}; "
                f"it is {self.steps}."
            )
        if self.adjoint == "backsolve":
            raise ValueError(
                "adjoint must be 'direct' or 'checkpointed' on a grid: backsolve needs "
                "equal steps."
            )
        object.__setattr__(self, "steps", len(grid) - 1)

    @property
    def shares(self) -> Float[np.ndarray, " times"]:
        """The ends of a fixed-step solver's steps as fractions of the interval, after a
        0.

        **Raises:** `ValueError` for an adaptive solver.
        """
        if self.grid is not None:
            return np.asarray(self.grid)
        if self.steps is None:
            raise ValueError(f"solver must have fixed steps, not {self}: give steps.")
        return np.arange(self.steps + 1) / self.steps

    def plan(self, tree: PyTree, t0: Any, t1: Any, dtype: Any = None) -> Schedule:
        """The schedule of this solver's steps; see `jnode.solvers.schedule.plan`."""
        steps = self.steps if self.grid is None else None
        return plan(tree, t0, t1, dtype=dtype, steps=steps, grid=self.grid)

    def freeze(self, schedule: Schedule) -> "Solver":
        """The fixed-step solver of this method that takes the steps of a schedule.

        With the `Solution.schedule` of an adaptive solve it reproduces that solve, up
        to rounding. From another initial state it takes the same steps, so the error is
        not controlled there, but the map is continuous and can be certified.

        **Raises:** `ValueError` for a solver whose steps are already fixed, and for a
        schedule of zero length.
        """
        if not self.adaptive:
            raise ValueError(f"solver must be adaptive to be frozen; {self} is fixed.")
        times = np.asarray(schedule.times, np.float64)
        if times[0] == times[-1]:
            raise ValueError(f"schedule must have a length; it ends at {times[0]:g}.")
        shares = (times - times[0]) / (times[-1] - times[0])
        return Solver(self.name, grid=tuple(shares.tolist()), adjoint=self.adjoint)

    def part(self, start: float, end: float) -> "Solver":
        """This solver on a part of its interval, from fraction `start` to `end` (0 <=
        start < end).

        A fixed-step solver keeps the steps in between; an adaptive solver is unchanged.

        **Raises:** `ValueError` if a fixed step would cross `start` or `end`.
        """
        if self.adaptive or (start, end) == (0, 1):
            return self
        name = "steps" if self.grid is None else "grid"
        first, last = ends_at(self.shares, [start, end], name)
        if self.grid is None:
            return dataclasses.replace(self, steps=last - first)
        inside = (self.shares[first + 1 : last] - start) / (end - start)
        return dataclasses.replace(self, grid=(0.0, *inside.tolist(), 1.0), steps=None)

    def check_agreement(
        self,
        given: dict[str, Any],
        adjoint: diffrax.AbstractAdjoint | None,
        max_steps: int | None,
    ) -> None:
        """Raises `ValueError` for arguments of a solve that contradict this solver.

        **Arguments:** those of `steps`, `ts`, `dt0` and `stepsize_controller` that were
        given; the adjoint and `max_steps`, or `None`.
        """
        for name, value in given.items():
            if name == "steps" and self.grid is None and value == self.steps:
                continue
            raise ValueError(
                f"{name} must be left out beside a jnode.Solver, which has its own "
                f"steps ({self}), or be the same; it is {value}. Give a Diffrax solver "
                f"to choose {name} here."
            )
        if adjoint is not None and self.adjoint != "direct":
            raise ValueError(
                f"adjoint must be left out beside a jnode.Solver with "
                f"adjoint={self.adjoint!r}; it is {type(adjoint).__name__}."
            )
        if isinstance(adjoint, diffrax.BacksolveAdjoint) and self.grid:
            raise ValueError(
                "adjoint must not be BacksolveAdjoint on a grid: it needs equal steps."
            )
        if max_steps is not None and self.steps is None and max_steps != self.max_steps:
            raise ValueError(
                f"max_steps must be left out beside {self}, which has max_steps="
                f"{self.max_steps}; it is {max_steps}."
            )
        if max_steps is not None and self.steps is not None and max_steps < self.steps:
            raise ValueError(
                f"max_steps must be at least the {self.steps} steps of {self}, not "
                f"{max_steps}."
            )

    @property
    def adaptive(self) -> bool:
        """Whether the steps depend on the input."""
        return self.steps is None

    @property
    def ladder(self) -> bool:
        """Whether a ladder controls the steps, so that the solve can be certified."""
        return self.controller != "pid"

    @property
    def doubles(self) -> bool:
        """Whether the steps of a ladder can grow again."""
        return self.controller == "ladder"

    @property
    def tolerances(self) -> tuple[Any, Any]:
        """The relative and absolute tolerance of an adaptive solver."""
        return (
            1e-3 if self.rtol is None else self.rtol,
            1e-4 if self.atol is None else self.atol,
        )

    @property
    def stages(self) -> int:
        """Evaluations of the field in one fixed step."""
        return len(tableau(self.name)[1])

    def at(self, tolerances: Float[Array, "2"]) -> "Solver":
        """This adaptive solver with tolerances that are data of a jitted function.

        Other tolerances then do not recompile. Use it inside that function only: such a
        solver cannot be a static part of anything that JAX compares.
        """
        solver = dataclasses.replace(self)
        for name, value in zip(("rtol", "atol"), tolerances, strict=True):
            object.__setattr__(solver, name, value)
        return solver

    def __str__(self) -> str:
        if self.adaptive:
            rtol, atol = self.tolerances
            if isinstance(rtol, jax.Array):
                return self.name
            steps = f", {self.controller} from {self.first_step:g}"
            return f"{self.name}(rtol={rtol:g}, atol={atol:g}{steps * self.ladder})"
        if self.grid is not None:
            return f"{self.name} on a grid of {self.steps} steps"
        return f"{self.name}x{self.steps}"

    def diffrax(self) -> diffrax.AbstractSolver:
        """The Diffrax solver of this name."""
        return SOLVERS[self.name]()


class Engine(NamedTuple):
    """How Diffrax solves.

    - `method`: its solver.
    - `adjoint`: Diffrax's, or the name of one (see `jnode.Solver`).
    - `control`: the step size controller; `None` for tolerances or fixed steps.
    - `tolerances`: the relative and absolute tolerance of adaptive steps; `None` for
        the schedule's own steps.
    - `dt0`: the first step of `control`.
    - `max_steps`: the limit of steps; for fixed steps, their number.
    """

    method: diffrax.AbstractSolver
    adjoint: diffrax.AbstractAdjoint | str
    control: diffrax.AbstractStepSizeController | None = None
    tolerances: Float[Array, "2"] | None = None
    dt0: Any = None
    max_steps: int | None = None

    @property
    def chooses(self) -> bool:
        """Whether a controller chooses the steps, not the schedule."""
        return self.control is not None or self.tolerances is not None

    @property
    def backsolves(self) -> bool:
        return self.adjoint == "backsolve" or isinstance(
            self.adjoint, diffrax.BacksolveAdjoint
        )


def join(solvers: Sequence[Solver], edges: Sequence[float]) -> Solver:
    """One solver that acts as each of several solvers on its part of the interval.

    **Arguments:** the solvers; and the edges of their parts, as fractions of the
    interval from 0 to 1. `Solver.part` of the result gives the solvers back, fixed
    steps up to rounding.

    **Raises:** `ValueError` for solvers that differ in more than their steps.
    """
    first = solvers[0]
    if len(solvers) == 1:
        return first
    if len({_without_steps(solver) for solver in solvers}) > 1:
        raise ValueError(
            "solvers must differ in nothing but their steps to make one solver, not "
            f"{', '.join(map(str, solvers))}: give all the same name, adjoint and "
            "tolerances."
        )
    if first.adaptive:
        return first
    grid = [0.0]
    for solver, (start, end) in zip(solvers, itertools.pairwise(edges), strict=True):
        grid += (start + (end - start) * solver.shares[1:]).tolist()
    steps = len(grid) - 1
    if np.allclose(grid, np.arange(steps + 1) / steps, rtol=0, atol=1e-9):
        return dataclasses.replace(first, grid=None, steps=steps)
    return dataclasses.replace(first, grid=(*grid[:-1], 1.0), steps=None)


def _without_steps(solver: Solver) -> tuple:
    return (
        solver.name,
        solver.adaptive,
        solver.tolerances,
        solver.max_steps,
        solver.adjoint,
        solver.controller,
        solver.first_step,
    )
