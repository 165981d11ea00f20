"""The amplification of a difference: certified bounds for fixed steps and for the
flow."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jnode.bounds import CERTIFIABLE, Bounds, unit_roundoff
from jnode.certify.precision import certifying
from jnode.constraints import measured
from jnode.fields import AbstractVectorField
from jnode.solvers import Schedule, Solver, plan, tableau
from jnode.solvers.schedule import everywhere, is_known


def stage_bounds(
    method: Any, hl: Float[Array, ""]
) -> tuple[list[float], list[Float[Array, ""]], list[Float[Array, ""]]]:
    r"""$b$, $\ell_i = hL(1 + s_i)$, which bounds stage $h k_i$, and the $s_i$.

    Every term is positive, so rounding is relative: a few units for each operation.
    """
    # Lists of Python numbers, which are weakly typed.
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
    method: Any,
    h: float | Float[Array, ""],
    bounds: Bounds,
    *,
    shortest: float | Float[Array, ""] | None = None,
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
    - Circle contractivity, where in addition the field is $c$-cocoercive: its square is
      at most $1 + (1/r - 2c/h)_+ \sum_i b_i \ell_i^2$, which is 1 for $h \le 2rc$
      (Sherry et al., arXiv 2306.17332), and there at most $1 + (2h - h^2/(rc))\mu\sum_i
      b_i(1 - s_i)_+^2$ if $\mu < 0$.

    **Arguments:** the method, by its name in `jnode.Solver`, as a `diffrax.AbstractERK`
    or as an explicit `diffrax.ButcherTableau`; the step $h > 0$; the field's bounds;
    and, if one bound is to hold for several steps, the shortest of them, $h$ being the
    longest.

    **Raises:** `TypeError` for another method.
    """
    # A longer step amplifies more, but also contracts more.
    shortest = h if shortest is None else shortest
    # Nothing is multiplied by an unknown constant, so that no NaN arises.
    known = jnp.isfinite(bounds.lipschitz)
    lipschitz = jnp.where(known, bounds.lipschitz, 0)
    mu = jnp.where(known, bounds.log_norm[1], 0)
    b, stages, inner = stage_bounds(method, lipschitz * h)
    weighted = [(w, s, i) for w, s, i in zip(b, stages, inner, strict=True) if w != 0]
    u = unit_roundoff(lipschitz.dtype)
    triangle = sum((abs(w) * s for w, s, _ in weighted), jnp.ones_like(lipschitz))
    best = triangle * (1 + (len(b) + 4) * u)
    radius = circle_contractivity_radius(method)
    if radius > 0:
        square = _square(radius, weighted, (shortest, h), mu, bounds.cocoercivity)
        # The sums cancel if a step contracts, so the error is a unit of 1, not of the
        # result.
        square = square + 32 * u * jnp.where(mu < 0, 1, 0)
        best = jnp.minimum(best, jnp.sqrt(square) * (1 + 8 * u))
    return jnp.where(known, best, jnp.inf)


def _square(radius, weighted, lengths, mu, cocoercivity) -> Float[Array, ""]:
    r"""The square of the smaller of the energy and the circle bound.

    For a circle contractive method, from its weights $b_i > 0$, $\ell_i$ and $s_i$.
    """
    shortest, h = lengths
    u, zero = unit_roundoff(mu.dtype), jnp.zeros_like(mu)
    up = (1 + (2 * len(weighted) + 16) * u) * jnp.ones_like(mu)
    growth = sum((w * (1 + i) ** 2 for w, _, i in weighted), zero)
    # Contraction counts only as much as stages cannot have shrunk the difference.
    least = sum((w * jnp.maximum(1 - i * up, 0) ** 2 for w, _, i in weighted), zero)
    least = least / up
    squares = sum((w * s**2 for w, s, _ in weighted), zero) * up
    drift = jnp.where(
        mu > 0, 2 * h * mu * growth * up**2, 2 * shortest * mu * least / up
    )
    energy = 1 + drift + squares / radius * up
    excess = jnp.maximum((1 + 4 * u) / radius - (1 - 8 * u) * 2 * cocoercivity / h, 0)
    # The floor keeps the quotient and its gradient from overflowing.
    safe = jnp.maximum(cocoercivity, h / (2 * radius))
    slope = 2 * shortest * (1 - 8 * u) - h**2 / (radius * safe) * (1 + 8 * u)
    slope = jnp.maximum(slope, 0)
    circle = 1 + excess * squares + slope / up * jnp.minimum(mu, 0) * least
    circle = jnp.where(cocoercivity > 0, circle, jnp.inf)
    return jnp.maximum(jnp.minimum(energy, circle), 0)


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
    schedule: Schedule | None = None,
) -> Float[Array, ""]:
    r"""A certified upper bound on $\|y_N - z_N\| / \|y_0 - z_0\|$ of a numerical solve.

    This is a Lipschitz constant of the map that is computed, not of the ideal flow: the
    product of `step_amplification` over all steps, equal or not, with the bounds of the
    field in the step's segment of time. Steps backward in time are steps of $-f$.
    Rounding of the states adds an absolute error, for which `jnode.certify.radius`
    allows separately.

    **Arguments:**

    - `field`: a vector field, or the `Bounds` of a field that does not jump in time.
    - `solver`: a `jnode.Solver`, or, with `steps` or `ts`, a Diffrax solver that is an
      explicit Runge-Kutta method (`diffrax.AbstractERK` or `diffrax.Euler`), or an
      explicit `diffrax.ButcherTableau`.
    - `t0`, `t1`: the times at which the solve begins and ends; it runs backward if `t1
        < t0`.
    - `steps`, `ts`: for a Diffrax solver, the number of equal steps, or the times at
        which steps end, from `t0` to `t1`.
    - `schedule`: instead of all these, the recorded steps of another solve, such as
        `jnode.Solution.schedule` of an adaptive one. The bound then holds for the map
        that takes these steps from every state.

    **Returns:** the bound; `inf` for an adaptive solver, whose map may jump between
    accepting and rejecting a step, so that no such bound exists; and 1 for `t1 == t0`.

    **Raises:** `TypeError` for a solver that is not an explicit Runge-Kutta method, for
    traced times, and for weights in half precision; `ValueError` for steps that do not
    fit the times or the jumps of the field.
    """
    if not is_known(t0, t1, schedule):
        raise TypeError(
            "t0, t1 and schedule must be numbers where something is certified, not "
            "traced values: the certificate is made for one interval."
        )
    if schedule is None:
        schedule = _planned(field, solver, t0, t1, steps, ts)
    elif steps is not None or ts is not None:
        raise ValueError("steps and ts must be left out beside a schedule.")
    return _of_schedule(field, solver, schedule)[0]


def amplifications(
    field: AbstractVectorField, solver: Solver, *, t0: float, t1: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`amplification`, and the largest product of the bounds of the last k steps, over
    all k from 0: by how much an error made on the way can have grown at the end.

    Errors are those of `amplification`.
    """
    return _of_schedule(field, solver, _planned(field, solver, t0, t1, None, None))


def _of_schedule(
    field, solver, schedule: Schedule | None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    if schedule is None:
        return jnp.asarray(jnp.inf), jnp.asarray(jnp.inf)
    method = solver.name if isinstance(solver, Solver) else solver
    return _product(field, method, schedule.cut(field))


def _planned(field, solver, t0, t1, steps, ts) -> Schedule | None:
    """The steps of a solve; `None` for an adaptive one."""
    if isinstance(solver, Solver):
        if steps is not None or ts is not None:
            raise ValueError(
                f"steps and ts must be left out beside {solver}, which has its own."
            )
        schedule = solver.plan(field, t0, t1)
        return None if solver.adaptive else schedule
    tableau(solver)  # raises unless it is explicit
    if steps is None and ts is None:
        raise ValueError(
            "steps or ts must be given for a Diffrax solver: only known steps can be "
            "certified."
        )
    return plan(field, t0, t1, steps=steps, ts=ts)


@certifying
def _product(field, method, schedule) -> tuple[Float[Array, ""], Float[Array, ""]]:
    if not isinstance(field, Bounds):
        field = measured(bounded(field))
    # Times and states have at least the precision of the least precise weights; of a
    # field without weights that is float32, also where JAX's default is float64.
    leaves = jax.tree.leaves(eqx.filter(field, eqx.is_inexact_array))
    dtypes = [x.dtype for x in leaves if x.dtype.name in CERTIFIABLE]
    u = max(map(unit_roundoff, dtypes), default=unit_roundoff(jnp.float32))
    total = growth = jnp.asarray(1.0)
    for k, part in enumerate(schedule.parts):
        here = schedule.at(field, k)
        bounds = here if isinstance(here, Bounds) else here.bounds()
        factor, grown = _steps_amplification(
            -bounds if schedule.direction < 0 else bounds, method, part, u
        )
        total = total.astype(factor.dtype) * factor
        growth = jnp.maximum(growth.astype(factor.dtype) * factor, grown)
    slack = 1 + 2 * schedule.count * unit_roundoff(total.dtype)
    # 0 times infinity is no bound.
    up = lambda x: jnp.where(jnp.isnan(x), jnp.inf, x * slack)  # noqa: E731
    return up(total), up(growth)


def bounded(field: Any) -> Any:
    """The field, or `TypeError` if it has no `bounds()`."""
    if not isinstance(field, AbstractVectorField):
        raise TypeError(
            "field must be a vector field with bounds, or jnode.Bounds, not "
            f"{type(field).__name__}: make a function one by jnode.Certified(fn, "
            "bounds=...); of a classifier, give its field."
        )
    return field


def _steps_amplification(
    bounds: Bounds, method, part: Schedule, u: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The product over the steps of one segment, by the bounds in their direction,
    with times that are rounded by `u`; and that of the factors above 1."""
    lengths = np.abs(part.lengths[0])
    # Diffrax computes a length as the difference of two times, one of which may be the
    # last number before a jump.
    error = 3 * u * (np.abs(part.times[:-1]) + np.abs(part.times[1:])) + 2 * u * lengths
    lengths, error = lengths[lengths != 0], error[lengths != 0]
    # Steps that are equal up to rounding share one factor.
    classes = np.round(np.log(lengths), 9)
    total = grown = jnp.ones_like(bounds.lipschitz)
    for one in np.unique(classes):
        alike = classes == one
        longest = float(np.max((lengths + error)[alike]))
        shortest = max(float(np.min((lengths - error)[alike])), 0.0)
        factor = step_amplification(method, longest, bounds, shortest=shortest)
        total = total * factor ** int(np.sum(alike))
        grown = grown * jnp.maximum(factor, 1) ** int(np.sum(alike))
    # A product that underflowed to zero would not be a bound.
    total = jnp.maximum(total, jnp.finfo(total.dtype).tiny)
    slack = 1 + (4 * len(lengths) + 4) * u
    return total * slack, grown * slack


def gronwall(field: AbstractVectorField, times: ArrayLike) -> Float[Array, " times"]:
    r"""Gronwall's envelope $e^{\int L}$ of $\|y(t) - z(t)\| / \|y(t_0) - z(t_0)\|$.

    $L$ may depend on time: each segment of a field that jumps counts for its duration.
    The envelope bounds the exact flow; `amplification` bounds a numerical solve.

    **Arguments:** the field, and times [times], the first of which is $t_0$:
    increasing, or decreasing for a solve backward, whose field is $-f$.

    **Raises:** `ValueError` for times that are not monotone; `TypeError` for times in
    half precision, or a field without bounds.
    """
    return jnp.exp(_integral(field, times, lambda bounds: bounds.lipschitz))


def log_norm_envelope(
    field: AbstractVectorField, times: ArrayLike
) -> Float[Array, " times"]:
    r"""The sharper envelope $e^{\int \mu_2}$ from the logarithmic norm.

    It bounds the exact flow (Dahlquist 1958; Söderlind, BIT 2006). Where $\mu_2 < 0$
    the flow is a contraction, and the envelope decreases. Arguments, with
    times [times], and errors are those of `gronwall`.
    """
    return jnp.exp(_integral(field, times, lambda bounds: bounds.log_norm[1]))


@certifying
def _integral(field, times, bound):
    known = is_known(times)
    clip: Any = np.clip if known else jnp.clip
    exact = np.asarray(times) if known else jnp.asarray(times)
    if not jnp.issubdtype(exact.dtype, jnp.floating):
        exact = exact.astype(float)
    times = jnp.asarray(exact)
    u = unit_roundoff(times.dtype)  # refuses half precision
    if known:
        steps = np.diff(exact)
        if not (np.all(steps >= 0) or np.all(steps <= 0)):
            raise ValueError(
                f"times must increase or decrease throughout, not {times.tolist()}."
            )
    field = measured(bounded(field))
    schedule = everywhere(field)
    edges = (-jnp.inf, *schedule.inside, jnp.inf)
    total = size = jnp.zeros_like(times)
    for k in range(schedule.count):
        bounds = schedule.at(field, k).bounds()
        forward, backward = bound(bounds), bound(-bounds)
        # How long the solve from times[0] has been in this segment. Times that are
        # known are subtracted in double precision.
        start, now = (clip(t, *edges[k : k + 2]) for t in (exact[:1], exact))
        spent = jnp.asarray(now - start, times.dtype)
        rate = jnp.where(spent < 0, backward, forward).astype(times.dtype)
        grown = jnp.where(spent == 0, 0, rate) * jnp.abs(spent)
        total, size = total + grown, size + jnp.abs(grown)
        if not known and schedule.inside:  # the jumps were rounded
            largest = max(abs(t) for t in schedule.inside)
            total = total + jnp.where(spent == 0, 0, 4 * u * largest * jnp.abs(rate))
    # Terms have both signs, so the allowance is relative to their sizes.
    return total + 1e-5 * jnp.where(jnp.isfinite(size), size, 0)
