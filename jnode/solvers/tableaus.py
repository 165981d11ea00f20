"""Explicit Runge-Kutta methods by name, as Butcher tableaus and Diffrax solvers."""

from typing import ClassVar

import diffrax
import numpy as np
from jaxtyping import Float


class RK4(diffrax.AbstractERK):
    """The classical fourth-order Runge-Kutta method (Kutta 1901), for fixed steps."""

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        c=np.array([0.5, 0.5, 1.0]),
        b_sol=np.array([1, 2, 2, 1]) / 6,
        # No embedded method: fixed steps never ask for an error.
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
"""Those with an error estimate, which can choose their steps."""

Tableau = tuple[
    Float[np.ndarray, "stages stages"],
    Float[np.ndarray, " stages"],
    Float[np.ndarray, " stages"],
]


def tableau(name: str) -> Tableau:
    r"""$(A, b, c)$ of a method, without stages that only its error estimate needs.

    Stage $i$ is $k_i = f(t + c_i h, y + h\sum_j a_{ij} k_j)$ and the step
    $y + h\sum_i b_i k_i$.
    """
    if name == "euler":
        return np.zeros((1, 1)), np.ones(1), np.zeros(1)
    a, b, _ = embedded_pair(name)
    t = SOLVERS[name].tableau  # pyright: ignore[reportAttributeAccessIssue]
    c = np.concatenate([[0.0], t.c])
    # A last stage that the solution does not weigh (first-same-as-last pairs).
    while b[-1] == 0:
        a, b, c = a[:-1, :-1], b[:-1], c[:-1]
    return a, b, c


def embedded_pair(name: str) -> Tableau:
    r"""$(A, b, e)$ of an adaptive method, all its stages: $h\sum_i e_i k_i$ estimates
    the error of the step."""
    t = SOLVERS[name].tableau  # pyright: ignore[reportAttributeAccessIssue]
    stages = len(t.b_sol)
    a = np.zeros((stages, stages))
    for i, row in enumerate(t.a_lower):
        a[i + 1, : i + 1] = row
    return a, np.asarray(t.b_sol, float), np.asarray(t.b_error, float)
