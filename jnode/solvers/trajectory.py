"""The states along a solve, for pictures and envelopes."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jnode.fields import AbstractVectorField, PiecewiseField
from jnode.solvers.solve import check_span, save_adaptive, step
from jnode.solvers.solver import Solver


def trajectory(
    field: AbstractVectorField,
    y0: Float[Array, "*state"],
    solver: Solver,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    points: int = 17,
) -> tuple[Float[np.ndarray, " times"], Float[Array, "times *state"]]:
    """The states that a solver passes through.

    **Arguments:** as `jnode.solve`; `points` is how many equally spaced times an
    adaptive solver's interpolation is read at.

    **Returns:** the times and the states there: of a fixed-step solver after every
    step, the first at `t0`, the last at `t1`.
    """
    field = field.bake()
    if isinstance(field, PiecewiseField):
        return _pieces(field, y0, solver, t0, t1, points)
    return _one(field, y0, solver, t0, t1, points)


def _pieces(field, y0, solver, t0, t1, points):
    check_span(field, t0, t1)
    ends = field.times()
    times, states = [np.asarray([t0])], [y0[None]]
    for k in range(field.count):
        part = solver.piece(k, field.count)
        each = max(2, -(-(points - 1) // field.count) + 1)
        t, y = _one(field.piece(k), states[-1][-1], part, ends[k], ends[k + 1], each)
        times.append(t[1:])
        states.append(y[1:])
    return np.concatenate(times), jnp.concatenate(states)


def _one(field, y0, solver, t0, t1, points) -> tuple[np.ndarray, Any]:
    if not solver.adaptive:
        times = t0 + (t1 - t0) * solver.shares

        def body(y, step_):
            t, h = step_
            after = step(field, t, h, y, solver)
            return after, after

        starts = jnp.asarray(times[:-1], y0.dtype)
        lengths = jnp.asarray((t1 - t0) * np.diff(solver.shares), y0.dtype)
        _, states = jax.lax.scan(body, y0, (starts, lengths))
        return times, jnp.concatenate([y0[None], states])
    times = np.linspace(t0, t1, points)
    saveat = diffrax.SaveAt(ts=jnp.asarray(times, y0.dtype))
    return times, save_adaptive(field, y0, solver, t0, t1, saveat).ys
