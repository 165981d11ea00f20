"""How much a numerical solve may stretch: certified bounds for fixed steps."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jnode.fields import AbstractVectorField, PiecewiseField
from jnode.linear._rounding import unit_roundoff
from jnode.solvers import Solver, tableau
from jnode.solvers.solve import check_span


def stage_bounds(
    name: str, hl: Float[Array, ""]
) -> tuple[list[float], list[Float[Array, ""]], list[Float[Array, ""]]]:
    r"""$b$, $\ell_i = hL(1 + s_i)$, which bounds stage $h k_i$, and the $s_i$.

    Every term is positive, so rounding is relative: a few units for each operation.
    """
    # Lists of Python's numbers, which take on the type of what they meet.
    a, b = (x.tolist() for x in tableau(name)[:2])
    stages, inners = [], []
    for i in range(len(b)):
        # Zeros are left out, since 0 * inf would be NaN.
        inner = sum(
            (abs(a[i][j]) * stages[j] for j in range(i) if a[i][j] != 0),
            start=jnp.zeros_like(hl),
        )
        stages.append(hl * (1 + inner) * (1 + (2 * i + 8) * unit_roundoff(hl.dtype)))
        inners.append(inner)
    return b, stages, inners


def step_amplification(
    name: str,
    h: float,
    lipschitz: Float[Array, ""],
    cocoercivity: Float[Array, ""],
    log_norm: Float[Array, ""],
) -> Float[Array, ""]:
    r"""A certified bound on the stretch of one explicit Runge-Kutta step.

    The smallest of three, for differences $\Delta$ between two solutions, $\ell_i \ge
    h\|\Delta k_i\|/\|\Delta y\|$ and $s_i = \sum_j |a_{ij}|\,\ell_j$.

    - Triangle inequality: $1 + \sum_i |b_i|\,\ell_i$ (for the classical method at most
      $\sum_{k \le 4} (hL)^k / k!$).
    - Energy, where $M + B/r \succeq 0$ (see `circle_contractivity_radius`):
      $\|\Delta y^+\|^2 = \|\Delta y\|^2 + 2h\sum_i b_i\langle\Delta k_i, \Delta
      Y_i\rangle - h^2\sum_{ij} m_{ij}\langle\Delta k_i, \Delta k_j\rangle$, so its
      square is at most $1 + \sum_i b_i(2h\mu\,\|\Delta Y_i\|^2/\|\Delta y\|^2 +
      \ell_i^2/r)$ with the logarithmic norm $\mu$ and $1 - s_i \le \|\Delta
      Y_i\|/\|\Delta y\| \le 1 + s_i$. For Euler's method $1 + 2h\mu + (hL)^2$.
    - Circle contractivity, where the field is $c$-cocoercive besides: its square is at
      most $1 + (1/r - 2c/h)_+ \sum_i b_i \ell_i^2$, which is 1 for $h \le 2rc$ (Sherry
      et al., arXiv 2306.17332), and there at most $1 + (2h - h^2/(rc))\mu\sum_i
      b_i(1 - s_i)_+^2$ if $\mu < 0$.

    **Arguments:** the solver's name, the step $h > 0$, and the field's bounds.
    """
    b, stages, inner = stage_bounds(name, lipschitz * h)
    u = unit_roundoff(lipschitz.dtype)
    mu = log_norm.astype(lipschitz.dtype)
    weighted = [(w, s, i) for w, s, i in zip(b, stages, inner, strict=True) if w != 0]
    one = jnp.ones_like(lipschitz)
    triangle = sum((abs(w) * s for w, s, _ in weighted), start=one)
    triangle = triangle * (1 + (len(b) + 4) * u)
    radius = circle_contractivity_radius(name)
    if radius == 0:
        return triangle
    up = (1 + (2 * len(b) + 16) * u) * one
    growth = sum((w * (1 + i) ** 2 for w, _, i in weighted), start=0 * one)
    # Contraction counts only as far as no stage can have shrunk the difference.
    least = sum(
        (w * jnp.maximum(1 - i * up, 0) ** 2 for w, _, i in weighted), start=0 * one
    )
    least = least / up
    squares = sum((w * s**2 for w, s, _ in weighted), start=0 * one) * up
    # No 0 * inf where nothing is known of the field.
    known = jnp.isfinite(lipschitz)
    mu = jnp.where(known, mu, 0)
    drift = 2 * h * jnp.where(mu > 0, mu * growth * up**2, mu * least / up)
    energy = 1 + drift + squares / radius * up
    excess = jnp.maximum((1 + 4 * u) / radius - (1 - 8 * u) * 2 * cocoercivity / h, 0)
    # Below this there is no slope; and no quotient, or its gradient, overflows.
    safe = jnp.maximum(cocoercivity, h / (2 * radius))
    slope = jnp.maximum(2 * h * (1 - 8 * u) - h**2 / (radius * safe) * (1 + 8 * u), 0)
    circle = 1 + excess * squares + slope / up * jnp.minimum(mu, 0) * least
    circle = jnp.where(cocoercivity > 0, circle, jnp.inf)
    best = jnp.maximum(jnp.minimum(energy, circle), 0)
    # The sums above cancel where a step contracts: one unit of 1, not of the result.
    best = jnp.sqrt(best + 32 * u * jnp.where(mu < 0, 1, 0)) * (1 + 8 * u)
    return jnp.minimum(triangle, jnp.where(known, best, jnp.inf))


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

    It bounds the map that is computed, not the ideal flow: the product over all steps,
    equal or not, of `step_amplification`, with the bounds of the piece of the field
    that the step lies in. Rounding of the states themselves adds an absolute error, for
    which `jnode.certify.radius` has its own allowance.

    **Returns:** the bound; `inf` for an adaptive solver, whose map may jump where a
    step is accepted or rejected, so that no such bound holds.
    """
    if solver.adaptive:
        return jnp.asarray(jnp.inf)
    if not isinstance(field, PiecewiseField):
        return _amplification(field, solver, t1 - t0)
    check_span(field, t0, t1)
    width = (t1 - t0) / field.count
    parts = [solver.piece(k, field.count) for k in range(field.count)]
    total = jnp.asarray(1.0)
    for k, part in enumerate(parts):
        total = total * _amplification(field.piece(k), part, width)
    return total * (1 + 2 * field.count * unit_roundoff(total.dtype))


def _amplification(field, solver, width):
    lipschitz = field.lipschitz()
    cocoercivity = field.cocoercivity().astype(lipschitz.dtype)
    u = unit_roundoff(lipschitz.dtype)
    # Steps that agree to rounding share one factor, taken at the longest of them.
    lengths = np.abs(width) * np.diff(solver.shares)
    ratios = np.round(lengths / np.max(lengths), 9)
    classes, counts = np.unique(ratios, return_counts=True)
    total = jnp.ones_like(lipschitz)
    for share, count in zip(classes, counts.tolist(), strict=True):
        h = float(share * np.max(lengths)) * (1 + 1e-8)
        factor = step_amplification(
            solver.name, h, lipschitz, cocoercivity, field.log_norm()
        )
        total = total * factor**count
    steps = len(lengths)
    return total * (1 + (4 * steps + 4) * u)
