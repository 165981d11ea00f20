"""The states along a solve, for pictures and envelopes."""

import functools
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jnode.constraints import plain
from jnode.solvers.fixed import walk_fixed
from jnode.solvers.schedule import is_known, plan
from jnode.solvers.solve import solve
from jnode.solvers.solver import Solver
from jnode.solvers.state import is_fast, promoted, real_dtype
from jnode.solvers.tableaus import rows, tableau


def trajectory(
    field: Any,
    y0: PyTree,
    solver: Solver,
    *,
    t0: Any = 0.0,
    t1: Any = 1.0,
    points: int = 17,
    ts: Any = None,
    args: PyTree = None,
) -> tuple[Float[Any, " times"], PyTree[Array]]:
    """The states that a solver passes through.

    **Arguments:** as `jnode.solve`; `ts` are the times to read the states at, from `t0`
    towards `t1`, between steps by Diffrax's interpolation. By default those of a
    fixed-step solver's steps, and of an adaptive one `points` equally spaced.

    **Returns:** the times (of NumPy, where they are known) and the states there, with
    an axis for times in front; by default the first at `t0`, the last at `t1`.

    **Raises:** `ValueError` for `ts` out of order or outside of the interval; as
    `jnode.solve`.
    """
    y0 = promoted(field, y0, t0, t1, args)
    if ts is not None:
        times = _checked(ts, t0, t1)
    elif solver.adaptive:
        times = _between(t0, t1, np.linspace(0, 1, points))
    else:
        times = _between(t0, t1, solver.shares)
        if is_fast(y0):
            name = "steps" if solver.grid is None else "grid"
            tree = (field, args)
            schedule = plan(tree, t0, t1, solver.shares, y0.dtype, name)
            return times, _walk(tree, y0, schedule, rows(tableau(solver.name)))
    saveat = diffrax.SaveAt(ts=jnp.asarray(times, real_dtype(y0)))
    return times, solve(field, y0, solver, t0=t0, t1=t1, args=args, saveat=saveat).ys


@functools.partial(eqx.filter_jit, inline=True)
def _walk(tree, y0, schedule, method):
    states = walk_fixed(plain(tree), y0, schedule, method)
    return jnp.concatenate([y0[None], *states])


def _between(t0, t1, shares):
    if is_known(t0, t1):
        return float(t0) + (float(t1) - float(t0)) * shares
    with jax.numpy_dtype_promotion("standard"):
        times = t0 + (t1 - t0) * jnp.asarray(shares, jnp.result_type(t0, t1))
    # Rounding must not take the last one past the end.
    return times.at[-1].set(t1)


def _checked(ts, t0, t1):
    if not is_known(ts, t0, t1):
        return ts
    ts = np.asarray(ts, np.float64)
    low, high = sorted((float(t0), float(t1)))
    steps = np.diff(ts) if float(t0) <= float(t1) else -np.diff(ts)
    if ts.ndim != 1 or not np.all(steps > 0):
        raise ValueError(
            f"ts must be a vector of times in order from t0 = {t0} to t1 = {t1}, not "
            f"{ts}."
        )
    if len(ts) and not (low <= ts.min() and ts.max() <= high):
        raise ValueError(f"ts must lie between t0 = {t0} and t1 = {t1}; it is {ts}.")
    return ts
