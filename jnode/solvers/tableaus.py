"""Explicit Runge-Kutta methods as Butcher tableaus, and Diffrax solvers by name."""

from typing import Any, ClassVar

import diffrax
import numpy as np
from jaxtyping import Float


class RK4(diffrax.AbstractERK):
    """The classical fourth-order Runge-Kutta method (Kutta 1901), for fixed steps."""

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        c=np.array([0.5, 0.5, 1.0]),
        b_sol=np.array([1, 2, 2, 1]) / 6,
        # No embedded method, since fixed steps need no error estimate.
        b_error=np.zeros(4),
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
    )
    interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        return 4


SOLVERS: dict[str, type[diffrax.AbstractSolver]] = {
    "euler": diffrax.Euler,
    "heun": diffrax.Heun,
    "midpoint": diffrax.Midpoint,
    "rk4": RK4,
    "bosh3": diffrax.Bosh3,
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
    "dopri8": diffrax.Dopri8,
}
"""The known solvers."""

ADAPTIVE = ("heun", "midpoint", "bosh3", "tsit5", "dopri5", "dopri8")
"""The solvers with an error estimate, which can take adaptive steps."""

Tableau = tuple[
    Float[np.ndarray, "stages stages"],
    Float[np.ndarray, " stages"],
    Float[np.ndarray, " stages"],
]

Rows = tuple[tuple[tuple[float, ...], ...], tuple[float, ...], tuple[float, ...]]
"""A tableau as Python numbers, which are static under `jax.jit` and weakly typed."""


def tableau(method: Any) -> Tableau:
    r"""$(A, b, c)$ of a method, without the stages that only its error estimate uses.

    Stage $i$ is $k_i = f(t + c_i h, y + h\sum_j a_{ij} k_j)$ and the step
    $y + h\sum_i b_i k_i$.

    **Arguments:** a name (`jnode.solvers.SOLVERS`), an explicit Runge-Kutta solver of
    Diffrax (`diffrax.AbstractERK` or `diffrax.Euler`), or an explicit
    `diffrax.ButcherTableau`.

    **Raises:** `ValueError` for an unknown name; `TypeError` for a method that is not
    an explicit Runge-Kutta method.
    """
    found = _butcher(method)
    if found is None:
        return np.zeros((1, 1)), np.ones(1), np.zeros(1)
    a, b, c = _full(found)
    # Drops a last stage of weight zero (first-same-as-last pairs).
    while len(b) > 1 and b[-1] == 0:
        a, b, c = a[:-1, :-1], b[:-1], c[:-1]
    return a, b, c


def embedded_pair(method: Any) -> tuple[Float[np.ndarray, " stages *_"], ...]:
    r"""$(A, b, c, e)$ of an adaptive method, all its stages: $h\sum_i e_i k_i$ is its
    estimate of a step's error. Arguments and errors are those of `tableau`."""
    found = _butcher(method)
    if found is None:
        raise TypeError("method must have an error estimate, which euler has not.")
    return *_full(found), np.asarray(found.b_error, float)


def rows(parts: Tableau) -> Rows:
    """A tableau's numbers as tuples."""
    a, b, c = (x.tolist() for x in parts)
    return tuple(tuple(row) for row in a), tuple(b), tuple(c)


def stage_time(c: float, t: Any, end: Any) -> Any:
    """The time of a stage of a step from `t` to `end`: the end itself for the last one,
    since `t + (end - t)` may be rounded beyond it, where a field may not be defined."""
    return end if c == 1 else t + c * (end - t)


def evaluations(method: Any, steps: Any, starts: int = 1) -> Any:
    """The number of evaluations of the field in `steps` steps of Diffrax, including
    rejected ones.

    `None` for a method that is not an explicit Runge-Kutta method, as only its own code
    knows. At each of the `starts`, a method that reuses its last stage in the next step
    (FSAL) has to compute one more.
    """
    try:
        found = _butcher(method)
    except TypeError:
        return None
    if found is None:
        return steps
    if found.fsal:
        return steps * (found.num_stages - 1) + starts
    return steps * found.num_stages


def _full(found: diffrax.ButcherTableau) -> Tableau:
    stages = len(found.b_sol)
    a = np.zeros((stages, stages))
    for i, row in enumerate(found.a_lower):
        a[i + 1, : i + 1] = row
    return a, np.asarray(found.b_sol, float), np.concatenate([[found.c1], found.c])


def _butcher(method: Any) -> diffrax.ButcherTableau | None:
    """An explicit method's tableau; `None` for Euler's, which has none in Diffrax."""
    if isinstance(method, str):
        if method not in SOLVERS:
            known = ", ".join(SOLVERS)
            raise ValueError(f"method must be one of {known}, not {method!r}.")
        method = SOLVERS[method]()
    if type(method) is diffrax.Euler:
        return None
    name = type(method).__name__
    if isinstance(method, diffrax.AbstractERK):
        if type(method).step is not diffrax.AbstractERK.step:
            raise TypeError(
                f"method must step as its tableau says, but {name} has a `step` of its "
                "own: give its diffrax.ButcherTableau, if that tells all."
            )
        found = method.tableau
    elif isinstance(method, diffrax.ButcherTableau):
        found = method
    else:
        raise TypeError(
            f"method must be an explicit Runge-Kutta method (a name, a "
            "diffrax.AbstractERK, diffrax.Euler or an explicit "
            f"diffrax.ButcherTableau), but {name} {_reason(method)}."
        )
    if not isinstance(found, diffrax.ButcherTableau) or found.implicit:
        raise TypeError(
            f"method must be explicit, but {name} is implicit or has several tableaus."
        )
    return found


def _reason(method: Any) -> str:
    if isinstance(method, diffrax.AbstractImplicitSolver):
        return "is implicit: its stages solve equations"
    stochastic = (
        diffrax.AbstractItoSolver,
        diffrax.AbstractStratonovichSolver,
        diffrax.AbstractSRK,
    )
    if isinstance(method, stochastic):
        return "is a method for stochastic differential equations"
    if isinstance(method, diffrax.HalfSolver):
        return "takes two half steps for each step of another method"
    if isinstance(method, diffrax.AbstractSolver):
        return "keeps something from step to step, or splits the field"
    return "is no method at all"
