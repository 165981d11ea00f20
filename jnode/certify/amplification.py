"""How much a numerical solve may stretch: certified bounds for fixed steps."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jnode.fields import AbstractVectorField
from jnode.linear._rounding import unit_roundoff
from jnode.solvers import Solver, tableau


def _stage_bounds(
    name: str, hl: Float[Array, ""]
) -> tuple[list[float], list[Float[Array, ""]]]:
    r"""$b$ and $\ell_i = hL(1 + \sum_j |a_{ij}|\,\ell_j)$, which bounds stage $h k_i$.

    Every term is positive, so rounding is relative: a few units for each operation.
    """
    # Lists of Python's numbers, which take on the type of what they meet.
    a, b = (x.tolist() for x in tableau(name)[:2])
    stages = []
    for i in range(len(b)):
        # Zeros are left out, since 0 * inf would be NaN.
        inner = sum(
            (abs(a[i][j]) * stages[j] for j in range(i) if a[i][j] != 0),
            start=jnp.zeros_like(hl),
        )
        stages.append(hl * (1 + inner) * (1 + (2 * i + 8) * unit_roundoff(hl.dtype)))
    return b, stages


def step_amplification(
    name: str,
    h: float,
    lipschitz: Float[Array, ""],
    cocoercivity: Float[Array, ""],
) -> Float[Array, ""]:
    r"""A certified bound on the stretch of one explicit Runge-Kutta step.

    The smaller of two. By the triangle inequality, $1 + \sum_i |b_i|\,\ell_i$ (for the
    classical method at most $\sum_{k \le 4} (hL)^k / k!$). And where
    $M + B/r \succeq 0$ (see `circle_contractivity_radius`) and the field is
    $c$-cocoercive,

    $\|\Delta y^+\|^2 = \|\Delta y\|^2 + 2h\sum_i b_i\langle\Delta k_i, \Delta
    Y_i\rangle - h^2\sum_{ij} m_{ij}\langle\Delta k_i, \Delta k_j\rangle
    \le \|\Delta y\|^2 (1 + (1/r - 2c/h)_+ \sum_i b_i \ell_i^2)$,

    which is 1 for $h \le 2rc$.

    **Arguments:** the solver's name, the step $h > 0$, and the field's bounds.
    """
    b, stages = _stage_bounds(name, lipschitz * h)
    u = unit_roundoff(lipschitz.dtype)
    weighted = [(w, s) for w, s in zip(b, stages, strict=True) if w != 0]
    triangle = sum((abs(w) * s for w, s in weighted), start=jnp.ones_like(lipschitz))
    triangle = triangle * (1 + (len(b) + 4) * u)
    radius = circle_contractivity_radius(name)
    if radius == 0:
        return triangle
    excess = jnp.maximum((1 + 4 * u) / radius - (1 - 8 * u) * 2 * cocoercivity / h, 0.0)
    energy = sum((w * s**2 for w, s in weighted), start=0.0)
    circle = jnp.sqrt(1 + excess * energy * (1 + (2 * len(b) + 8) * u)) * (1 + 4 * u)
    return jnp.minimum(triangle, jnp.where(cocoercivity > 0, circle, jnp.inf))


@functools.cache
def circle_contractivity_radius(name: str) -> float:
    r"""The largest $r$ for which the tableau is circle contractive; 0 if none is.

    A step of a $c$-cocoercive field is nonexpansive for $h \le 2rc$ if
    $BA + A^\top B - bb^\top + B/r \succeq 0$ with $B = \mathrm{diag}(b) \succ 0$
    (Dahlquist & Jeltsch 1979; Sherry et al., arXiv 2306.17332). Solved as an eigenvalue
    problem and rounded down.
    """
    a, b, _ = tableau(name)
    if np.any(b <= 0):
        return 0.0
    root = np.sqrt(b)
    m = root[:, None] * a / root[None]
    symmetric = m + m.T - np.outer(root, root)
    least = float(np.linalg.eigvalsh(symmetric)[0])
    if least >= 0:
        raise NotImplementedError(f"{name} is contractive for every step size.")
    # Rounded down, by far more than eigvalsh errs.
    return -1 / least * (1 - 1e-12)


def amplification(
    field: AbstractVectorField, solver: Solver, *, t0: float = 0.0, t1: float = 1.0
) -> Float[Array, ""]:
    r"""A certified upper bound on $\|y_N - z_N\| / \|y_0 - z_0\|$ of a numerical solve.

    It bounds the map that is computed, not the ideal flow: per step the sharper of
    `step_amplification` and, for cocoercive fields, circle contractivity, to the power
    of the number of steps. Rounding of the states themselves adds an absolute error,
    for which `jnode.certify.radius` has its own allowance.

    **Returns:** the bound; `inf` for an adaptive solver, whose map may jump where a
    step is accepted or rejected, so that no such bound holds.
    """
    steps = solver.steps
    if steps is None:
        return jnp.asarray(jnp.inf)
    h = abs(t1 - t0) / steps
    lipschitz = field.lipschitz()
    u = unit_roundoff(lipschitz.dtype)
    cocoercivity = field.cocoercivity().astype(lipschitz.dtype)
    factor = step_amplification(solver.name, h, lipschitz, cocoercivity)
    return factor**steps * (1 + (4 * steps + 4) * u)
