"""The Lipschitz constant of a numerical solve: certified bounds for fixed steps."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jnode._rounding import unit_roundoff
from jnode.bounds import Bounds
from jnode.certify.precision import certifying
from jnode.constraints import measured
from jnode.fields import AbstractVectorField
from jnode.fields.piecewise import jumps, segment
from jnode.solvers import Solver, tableau


def stage_bounds(
    method: Any, hl: Float[Array, ""]
) -> tuple[list[float], list[Float[Array, ""]], list[Float[Array, ""]]]:
    r"""$b$, $\ell_i = hL(1 + s_i)$, which bounds stage $h k_i$, and the $s_i$.

    Every term is positive, so rounding is relative: a few units for each operation.
    """
    # Lists of Python's numbers, which take on the type of what they meet.
    a, b = (x.tolist() for x in tableau(method)[:2])
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
    method: Any, h: float, bounds: Bounds, *, shortest: float | None = None
) -> Float[Array, ""]:
    r"""A certified bound on the Lipschitz constant of one explicit Runge-Kutta step.

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

    **Arguments:** the method, by its name in `jnode.Solver`, as a `diffrax.AbstractERK`
    or as an explicit `diffrax.ButcherTableau`; the step $h > 0$; the field's bounds;
    and the shortest of the steps that are bounded, where $h$ is the longest of several.

    **Raises:** `TypeError` for another method.
    """
    # A longer step grows more, but contracts more too.
    shortest = h if shortest is None else shortest
    # Nothing is multiplied by an unknown constant, so that no NaN arises.
    known = jnp.isfinite(bounds.lipschitz)
    lipschitz = jnp.where(known, bounds.lipschitz, 0)
    cocoercivity = bounds.cocoercivity
    b, stages, inner = stage_bounds(method, lipschitz * h)
    u = unit_roundoff(lipschitz.dtype)
    mu = jnp.where(known, bounds.log_norm[1], 0)
    weighted = [(w, s, i) for w, s, i in zip(b, stages, inner, strict=True) if w != 0]
    one = jnp.ones_like(lipschitz)
    triangle = sum((abs(w) * s for w, s, _ in weighted), start=one)
    triangle = triangle * (1 + (len(b) + 4) * u)
    radius = circle_contractivity_radius(method)
    if radius == 0:
        return jnp.where(known, triangle, jnp.inf)
    up = (1 + (2 * len(b) + 16) * u) * one
    growth = sum((w * (1 + i) ** 2 for w, _, i in weighted), start=0 * one)
    # Contraction counts only as far as no stage can have shrunk the difference.
    least = sum(
        (w * jnp.maximum(1 - i * up, 0) ** 2 for w, _, i in weighted), start=0 * one
    )
    least = least / up
    squares = sum((w * s**2 for w, s, _ in weighted), start=0 * one) * up
    drift = jnp.where(
        mu > 0, 2 * h * mu * growth * up**2, 2 * shortest * mu * least / up
    )
    energy = 1 + drift + squares / radius * up
    excess = jnp.maximum((1 + 4 * u) / radius - (1 - 8 * u) * 2 * cocoercivity / h, 0)
    # Below this there is no slope; and no quotient, or its gradient, overflows.
    safe = jnp.maximum(cocoercivity, h / (2 * radius))
    slope = 2 * shortest * (1 - 8 * u) - h**2 / (radius * safe) * (1 + 8 * u)
    slope = jnp.maximum(slope, 0)
    circle = 1 + excess * squares + slope / up * jnp.minimum(mu, 0) * least
    circle = jnp.where(cocoercivity > 0, circle, jnp.inf)
    best = jnp.maximum(jnp.minimum(energy, circle), 0)
    # The sums above cancel where a step contracts: one unit of 1, not of the result.
    best = jnp.sqrt(best + 32 * u * jnp.where(mu < 0, 1, 0)) * (1 + 8 * u)
    return jnp.where(known, jnp.minimum(triangle, best), jnp.inf)


def circle_contractivity_radius(method: Any) -> float:
    r"""The largest $r$ for which the tableau is circle contractive; 0 if none is.

    A step of a $c$-cocoercive field is nonexpansive for $h \le 2rc$ if
    $BA + A^\top B - bb^\top + B/r \succeq 0$ with $B = \mathrm{diag}(b) \succ 0$
    (Dahlquist & Jeltsch 1979; Sherry et al., arXiv 2306.17332). Solved as an eigenvalue
    problem and rounded down.

    **Arguments:** the method, as of `step_amplification`.

    **Raises:** `TypeError` for a method that is not an explicit Runge-Kutta method.
    """
    a, b, _ = tableau(method)
    if np.any(b <= 0):
        return 0.0
    root = np.sqrt(b)
    m = root[:, None] * a / root[None]
    symmetric = m + m.T - np.outer(root, root)
    least = float(np.linalg.eigvalsh(symmetric)[0])
    assert least < 0, "no explicit method is contractive for every step size"
    # Rounded down, by far more than eigvalsh errs.
    return -1 / least * (1 - 1e-12)


def amplification(
    field: AbstractVectorField | Bounds,
    solver: Any,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    steps: int | None = None,
    ts: Sequence[float] | None = None,
) -> Float[Array, ""]:
    r"""A certified upper bound on $\|y_N - z_N\| / \|y_0 - z_0\|$ of a numerical solve.

    It bounds the map that is computed, not the ideal flow: the product over all steps,
    equal or not, of `step_amplification`, with the bounds of the field as it is in the
    step's segment of time. Steps backward in time are steps of $-f$. Rounding of the
    states themselves adds an absolute error, for which `jnode.certify.radius` has its
    own allowance.

    **Arguments:**

    - `field`: a vector field, or the `Bounds` of one that does not jump.
    - `solver`: a `jnode.Solver`, or, with `steps` or `ts`, a Diffrax solver that is an
      explicit Runge-Kutta method (`diffrax.AbstractERK` or `diffrax.Euler`), or an
      explicit `diffrax.ButcherTableau`.
    - `t0`, `t1`: where the solve begins and ends; `t1 < t0` solves backward.
    - `steps`, `ts`: of a Diffrax solver: the number of equal steps, or the times at
      which steps end, from `t0` to `t1`.

    **Returns:** the bound; `inf` for an adaptive solver, whose map may jump where a
    step is accepted or rejected, so that no such bound holds; and 1 for `t1 == t0`.

    **Raises:** `TypeError` for a solver that is not an explicit Runge-Kutta method, and
    for weights in half precision; `ValueError` for steps that do not fit the times or
    the jumps of the field.
    """
    times = step_times(solver, t0=t0, t1=t1, steps=steps, ts=ts)
    if times is None:
        return jnp.asarray(jnp.inf)
    return _product(field, solver, times)


@certifying
def _product(field, solver, times) -> Float[Array, ""]:
    if isinstance(field, Bounds):
        return _amplification(field, solver, np.diff(times))
    field = measured(bounded(field))
    edges, lengths = by_segment(field, times)
    total = jnp.asarray(1.0)
    for k, widths in enumerate(lengths):
        bounds = segment(field, k, edges).bounds()
        factor = _amplification(bounds, solver, widths)
        total = total.astype(factor.dtype) * factor
    return total * (1 + 2 * len(lengths) * unit_roundoff(total.dtype))


def bounded(field: Any) -> Any:
    """The field; `TypeError` where it has no `bounds()` to certify anything by."""
    if not isinstance(field, AbstractVectorField):
        raise TypeError(
            "field must be a vector field with bounds, or jnode.Bounds, not "
            f"{type(field).__name__}: make a function one by jnode.Certified(fn, "
            "bounds=...); of a classifier, give its field."
        )
    return field


def step_times(
    solver: Any,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    steps: int | None = None,
    ts: Sequence[float] | None = None,
) -> Float[np.ndarray, " times"] | None:
    """Where the steps of a fixed-step solve begin and end; `None` of an adaptive one.

    **Raises:** as `amplification`.
    """
    for name, value in (("t0", t0), ("t1", t1)):
        if isinstance(value, jax.core.Tracer):
            raise TypeError(
                f"{name} must be a number where something is certified, not a traced "
                "value: the certificate is made for one interval."
            )
        if not np.isfinite(value):
            raise ValueError(f"{name} must be a finite number, not {value}.")
    if isinstance(solver, Solver):
        if steps is not None or ts is not None:
            raise ValueError(
                f"steps and ts must be left out beside {solver}, which has its own."
            )
        if solver.adaptive:
            return None
        return t0 + (t1 - t0) * solver.shares
    tableau(solver)  # refuses what is not explicit
    if (steps is None) == (ts is None):
        raise ValueError(
            "steps or ts must be given for a Diffrax solver, and not both: only known "
            "steps can be certified."
        )
    if ts is None:
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be an integer of at least 1, not {steps!r}.")
        return t0 + (t1 - t0) * np.arange(steps + 1) / steps
    times = np.asarray(ts, np.float64)
    widths = np.diff(times) * (1 if t1 >= t0 else -1)
    ends = len(times) > 1 and times[0] == t0 and times[-1] == t1
    if not ends or np.any(widths <= 0):
        raise ValueError(
            f"ts must run from t0 = {t0} to t1 = {t1} without turning back; it is "
            f"{times.tolist()}."
        )
    return times


def by_segment(
    field: Any, times: Float[np.ndarray, " times"]
) -> tuple[tuple[float, ...], list[Float[np.ndarray, " steps"]]]:
    """The ends of the segments between the jumps of a field, and the lengths of the
    steps in each, in the order of the solve.

    **Raises:** `ValueError` where a step would cross a jump.
    """
    t0, t1 = float(times[0]), float(times[-1])
    low, high = min(t0, t1), max(t0, t1)
    inside = [t for t in jumps(field) if low < t < high]
    if t1 < t0:
        inside = inside[::-1]
    ends = [int(np.argmin(np.abs(times - t))) for t in inside]
    for t, end in zip(inside, ends, strict=True):
        if abs(times[end] - t) > 1e-9 * max(1.0, abs(t), high - low):
            raise ValueError(
                f"solver must end a step at t = {t:g}, where the field jumps: take a "
                "multiple of its segments as steps, or give the times."
            )
    return (t0, *inside, t1), np.split(np.diff(times), ends)


def _amplification(bounds: Bounds, solver, lengths) -> Float[Array, ""]:
    method = solver.name if isinstance(solver, Solver) else solver
    lengths = lengths[lengths != 0]
    if len(lengths) == 0:
        return jnp.ones_like(bounds.lipschitz)
    if lengths[0] < 0:
        bounds, lengths = -bounds, -lengths
    lipschitz = bounds.lipschitz
    u = unit_roundoff(lipschitz.dtype)
    # Steps that agree to rounding, relative to themselves, share one factor.
    classes = np.round(np.log(lengths), 9)
    total = jnp.ones_like(lipschitz)
    for one in np.unique(classes):
        alike = lengths[classes == one]
        longest, shortest = float(np.max(alike)), float(np.min(alike))
        factor = step_amplification(method, longest, bounds, shortest=shortest)
        total = total * factor ** len(alike)
    # A product that vanished would be a bound no more.
    total = jnp.maximum(total, jnp.finfo(total.dtype).tiny)
    return total * (1 + (4 * len(lengths) + 4) * u)
