"""The description of a numerical solver: what method, what steps, what adjoint."""

import dataclasses

import diffrax

from jnode.solvers.tableaus import ADAPTIVE, SOLVERS, tableau

ADJOINTS = ("direct", "checkpointed", "backsolve")


@dataclasses.dataclass(frozen=True)
class Solver:
    """A numerical solver: fixed-step with `steps`, else adaptive with tolerances.

    **Arguments:**

    - `name`: euler, heun, midpoint, rk4, bosh3, tsit5, dopri5 or dopri8.
    - `steps`: the number of equal steps, at least 1; `None` for adaptive steps.
    - `rtol`, `atol`: an adaptive solver's relative and absolute tolerance, positive.
        By default 1e-3 and 1e-4.
    - `max_steps`: an adaptive solver's limit, past which a solve raises.
    - `adjoint`: how gradients are computed: "direct" differentiates the numerical solve
        and stores its steps, "checkpointed" does the same in less memory by computing
        parts anew, "backsolve" solves the continuous adjoint equations backwards
        (cheapest in memory, and only approximately the gradient of this solve).

    **Raises:** `ValueError` with one sentence for anything else.
    """

    name: str = "rk4"
    steps: int | None = None
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 256
    adjoint: str = "direct"

    def __post_init__(self):
        if self.name not in SOLVERS:
            known = ", ".join(SOLVERS)
            raise ValueError(f"solver name must be one of {known}, not {self.name!r}.")
        if self.adjoint not in ADJOINTS:
            known = ", ".join(ADJOINTS)
            raise ValueError(f"adjoint must be one of {known}, not {self.adjoint!r}.")
        if self.steps is not None:
            if not isinstance(self.steps, int) or self.steps < 1:
                raise ValueError(
                    f"steps must be an integer of at least 1, not {self.steps!r}."
                )
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

    @property
    def adaptive(self) -> bool:
        """Whether the solver chooses its steps from its input."""
        return self.steps is None

    @property
    def tolerances(self) -> tuple[float, float]:
        """The relative and absolute tolerance of an adaptive solver."""
        return (
            1e-3 if self.rtol is None else self.rtol,
            1e-4 if self.atol is None else self.atol,
        )

    @property
    def stages(self) -> int:
        """Evaluations of the field in one fixed step."""
        return len(tableau(self.name)[1])

    def __str__(self) -> str:
        if self.adaptive:
            rtol, atol = self.tolerances
            return f"{self.name}(rtol={rtol:g}, atol={atol:g})"
        return f"{self.name}x{self.steps}"

    def diffrax(self) -> diffrax.AbstractSolver:
        """The Diffrax solver of this name."""
        return SOLVERS[self.name]()
