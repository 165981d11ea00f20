"""Integrating a vector field by any solver."""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from jnode.constraints import plain
from jnode.fields import AbstractVectorField
from jnode.fields.base import takes_batches, time_invariant
from jnode.solvers.adaptive import Together, controller, each, solve_adaptive
from jnode.solvers.fixed import RightHandSide, solve_fixed, walk_fixed
from jnode.solvers.ladder import LadderController
from jnode.solvers.schedule import Schedule, checked_times, is_known, plan
from jnode.solvers.solution import (
    NOT_FINITE,
    Solution,
    compiled,
    finished,
    is_fast,
    name_of,
    promoted,
    real_dtype,
    statistics,
    verdict,
)
from jnode.solvers.solver import Engine, Solver
from jnode.solvers.tableaus import rows, tableau
from jnode.solvers.through import is_adaptive, solve_chain, solve_whole

MAX_STEPS = 4096
"""The default limit of steps for a step size controller, as in Diffrax."""


class _Asked(NamedTuple):
    """The arguments of `solve` beside the field, the state and the times."""

    steps: int | None = None
    ts: Any = None
    dt0: Any = None
    stepsize_controller: diffrax.AbstractStepSizeController | None = None
    adjoint: diffrax.AbstractAdjoint | None = None
    saveat: diffrax.SaveAt | None = None
    event: diffrax.Event | None = None
    max_steps: int | None = None
    throw: bool = True

    def given(self, *names: str) -> dict[str, Any]:
        """Those of these arguments that were given."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


def solve(
    field: Any,
    y0: PyTree,
    solver: Solver | diffrax.AbstractSolver,
    *,
    t0: Any = 0.0,
    t1: Any = 1.0,
    args: PyTree = None,
    steps: int | None = None,
    ts: Any = None,
    dt0: Any = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    saveat: diffrax.SaveAt | None = None,
    event: diffrax.Event | None = None,
    max_steps: int | None = None,
    throw: bool = True,
) -> Solution:
    """Integrates $dy/dt = f(t, y)$ from `t0` to `t1`, backwards where $t_1 < t_0$.

    It solves for one state: under `jax.vmap` an adaptive solver chooses the steps of
    each sample separately. No step crosses a jump of a `PiecewiseField` anywhere in
    `field` or `args`. Calls outside jit that differ only in numbers compile once.

    **Arguments:**

    - `field`: any function `f(t, y, args)`, which receives `args`.
    - `y0`: the state: any PyTree of arrays or numbers, promoted as in Diffrax.
    - `solver`: a `jnode.Solver`, which includes its steps; or an ODE solver of Diffrax,
        together with one of `steps`, `ts`, `stepsize_controller` and `dt0`.
    - `t0`, `t1`: numbers, or traced scalars, between which all jumps of the field must
        lie.
    - `steps`: the number of equal steps; `ts`: the times at which steps end.
    - `dt0`: the first step of a `stepsize_controller`; alone, the length of all steps.
    - `stepsize_controller`, `adjoint`, `saveat`, `event`: Diffrax's.
    - `max_steps`: the number of steps beyond which the solve fails; by default the
        solver's own limit, and 4096 for a step size controller.
    - `throw`: whether a failure raises. If not, `y` is the state that was reached,
        which may not be finite; check `stats["num_failed"]` and `result`.

    **Raises:** `TypeError` for a `solver` that is not a solver, or a `field` that is a
    term of Diffrax; `ValueError` for
    arguments that contradict each other, and for fixed steps that cross a jump; with
    `throw`, an error at run time, also under jit, if the solve takes more than
    `max_steps` steps or the state is no longer finite.
    """
    y0 = promoted(field, y0, t0, t1, args)
    choice = (steps, ts, dt0, stepsize_controller)
    asked = _Asked(*choice, adjoint, saveat, event, max_steps, throw)
    prepare = _ours if isinstance(solver, Solver) else _theirs
    return prepare((field, args), y0, solver, t0, t1, asked)


def solve_batch(
    field: Any,
    y0: PyTree,
    solver: Solver,
    *,
    t0: Any = 0.0,
    t1: Any = 1.0,
    args: PyTree = None,
    throw: bool = True,
) -> Solution:
    """Integrates a batch of states: the result of `jax.vmap` of `solve`, but faster.

    All states are solved together, in a layout without transposes, and an adaptive
    solver still chooses the steps of each sample separately. An adaptive solve is
    differentiable in reverse mode only.

    **Arguments:** as for `solve`, but with a batch of states, `[batch, *state]`; `args`
    are shared by all states.

    **Returns:** a `Solution` in which every array has the batch axis first.

    **Raises:** as `solve`.
    """
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a jnode.Solver, not {name_of(solver)}.")
    if isinstance(y0, list) and isinstance(field, AbstractVectorField):
        y0 = np.asarray(y0)
    y0 = jax.tree.map(jnp.asarray, y0)
    one = jax.tree.map(lambda y: jax.ShapeDtypeStruct(y.shape[1:], y.dtype), y0)
    like = eqx.filter_eval_shape(promoted, field, one, t0, t1, args)
    y0 = jax.tree.map(lambda y, one: jnp.asarray(y, one.dtype), y0, like)
    tree, dtype = (field, args), real_dtype(y0)
    schedule = solver.plan(tree, t0, t1, dtype).astype(dtype)
    engine = _engine(solver, solver.adjoint, dtype)
    found = Solution(*_batch(tree, y0, schedule, engine))
    return _checked(found, _label(solver), engine.max_steps) if throw else found


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

    **Arguments:** as for `jnode.solve`, except that `ts` are the times at which the
    states are returned, from `t0` towards `t1`, interpolated between steps by Diffrax.
    The default is the times of a fixed-step solver's steps and, for an adaptive solver,
    `points` equally spaced times.

    **Returns:** the times, `[times]` (a NumPy array if they are known), and the states
    there, `[times, *state]`; by default the first is at `t0` and the last at `t1`.

    **Raises:** `ValueError` for `ts` out of order or outside of the interval; as
    `jnode.solve`.
    """
    y0 = promoted(field, y0, t0, t1, args)
    tree, dtype = (field, args), real_dtype(y0)
    if ts is not None:
        known = is_known(ts, t0, t1)
        times = checked_times(ts, t0, t1, whole=False) if known else ts
    elif solver.adaptive:
        times = plan(None, t0, t1, dtype=dtype, steps=points - 1).times
    else:
        schedule = solver.plan(tree, t0, t1, dtype)
        times = schedule.times
        if is_fast(y0):
            method = rows(tableau(solver.name))
            return times, walk_fixed(tree, y0, schedule.astype(dtype), method)
    saveat = diffrax.SaveAt(ts=jnp.asarray(times, dtype))
    return times, solve(field, y0, solver, t0=t0, t1=t1, args=args, saveat=saveat).ys


def _ours(tree, y0, solver, t0, t1, asked):
    """A solve by a `jnode.Solver`."""
    given = asked.given("steps", "ts", "dt0", "stepsize_controller")
    solver.check_agreement(given, asked.adjoint, asked.max_steps)
    dtype = real_dtype(y0)
    schedule = solver.plan(tree, t0, t1, dtype)
    engine = _engine(solver, asked.adjoint or solver.adjoint, dtype)
    if engine.adjoint == "direct":
        found = _quick(tree, y0, schedule, engine, _label(solver), asked)
        if found is not None:
            return found
    if asked.given("saveat", "event"):
        if schedule.inside and solver.ladder:
            raise ValueError(
                f"saveat and event must be left out for a field that jumps (at t = "
                f"{schedule.inside[0]:g}) beside {solver}, whose ladder starts anew "
                "after each jump: solve its segments one by one."
            )
        return _saved(tree, y0, schedule, engine, asked)
    times = schedule.astype(dtype)
    y, stats, begin, stop, ends = solve_chain(tree, y0, times, engine)
    kept = ends is not None or not engine.chooses
    found = Solution(y, stats, begin, stop, schedule if kept else None, ends)
    return _checked(found, _label(solver), engine.max_steps) if asked.throw else found


def _theirs(tree, y0, solver, t0, t1, asked):
    """A solve by a solver of Diffrax."""
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(
            "solver must be a jnode.Solver or a solver of Diffrax, as diffrax.Tsit5(), "
            f"not {name_of(solver)}."
        )
    _check_choice(asked, t0, t1)
    schedule = plan(tree, t0, t1, dtype=real_dtype(y0), steps=asked.steps, ts=asked.ts)
    adjoint = asked.adjoint or "checkpointed"
    engine = Engine(solver, adjoint, max_steps=asked.max_steps)
    if asked.given("steps", "ts"):
        _check_fixed(schedule, engine, asked)
        found = _quick(tree, y0, schedule, engine, name_of(solver), asked)
        return found or _saved(tree, y0, schedule, engine, asked)
    control = asked.stepsize_controller or diffrax.ConstantStepSize()
    if schedule.inside and not is_adaptive(control):
        raise ValueError(
            f"steps or ts must be given for a field that jumps (at t = "
            f"{schedule.inside[0]:g}), so that no step crosses a jump; "
            f"{name_of(control)} knows of none."
        )
    most = MAX_STEPS if asked.max_steps is None else asked.max_steps
    engine = engine._replace(control=control, dt0=asked.dt0, max_steps=most)
    return _saved(tree, y0, schedule, engine, asked)


def _engine(solver, adjoint, dtype):
    method = solver.diffrax()
    if not solver.adaptive:
        return Engine(method, adjoint)
    # Passed as data, so that other tolerances do not recompile; they may be traced
    # (`Solver.at`).
    tolerances = jnp.stack([jnp.asarray(x) for x in solver.tolerances]).astype(dtype)
    if solver.ladder:
        control = LadderController(
            tolerances[0], tolerances[1], solver.first_step, solver.doubles
        )
        return Engine(method, adjoint, control, max_steps=solver.max_steps)
    return Engine(method, adjoint, tolerances=tolerances, max_steps=solver.max_steps)


def _rows(engine):
    return rows(tableau(engine.method))


def _label(solver):
    return solver.name if solver.adaptive else str(solver)


def _quick(tree, y0, schedule, engine, label, asked):
    """The solve by a plain scan, if the arguments allow it."""
    if engine.chooses or asked.given("adjoint", "saveat", "event") or not is_fast(y0):
        return None
    try:
        method = _rows(engine)
    except TypeError:  # no explicit method
        return None
    solved = solve_fixed(tree, y0, schedule.astype(y0.dtype), method)
    found = Solution(*solved, schedule)
    return _checked(found, label, None) if asked.throw else found


def _checked(found, label, max_steps):
    """The solution, with an error at run time unless it reached its end."""
    seen = verdict(found.y, found.stats)
    y = finished(found.y, seen, label, max_steps)
    return eqx.tree_at(lambda s: s.y, found, y)


def _saved(tree, y0, schedule, engine, asked):
    times = schedule.astype(real_dtype(y0))
    inputs = (asked.saveat, asked.event)
    y, stats, t0, t1, ends, inner = solve_whole(tree, y0, times, engine, *inputs)
    if asked.throw:
        y, inner = _diffrax_checked(y, stats, inner, name_of(engine.method))
    known = not engine.chooses and asked.event is None
    kept = schedule if known or ends is not None else None
    return Solution(y, stats, t0, t1, kept, ends, inner)


def _diffrax_checked(y, stats, inner, label):
    """A solution of Diffrax, with its own error at run time if it failed."""
    failed, finite = verdict(y, stats)
    good = finite & ~failed
    if not isinstance(good, Tracer) and good.item():
        return y, inner
    y, inner = inner.result.error_if((y, inner), ~diffrax.is_okay(inner.result))
    return eqx.error_if((y, inner), ~finite, NOT_FINITE.format(label))


def _check_choice(asked, t0, t1):
    """Raises `ValueError` unless exactly one argument determines a Diffrax solver's
    steps."""
    ways = list(asked.given("steps", "ts", "stepsize_controller"))
    if len(ways) > 1 or (ways in (["steps"], ["ts"]) and asked.dt0 is not None):
        raise ValueError(
            f"{' and '.join([*ways, 'dt0'][:2])} must not be given together: each says "
            "what steps to take."
        )
    if not ways and asked.dt0 is None:
        raise ValueError(
            "steps, ts or stepsize_controller must be given beside a Diffrax solver, "
            "for instance stepsize_controller=diffrax.PIDController(rtol=1e-3, "
            "atol=1e-4)."
        )
    dt0 = asked.dt0
    if dt0 is None or not is_known(dt0, t0, t1) or t0 == t1:
        return
    if not (t1 - t0) * float(dt0) > 0:
        raise ValueError(f"dt0 must lead from t0 = {t0} to t1 = {t1}; it is {dt0}.")


def _check_fixed(schedule, engine, asked):
    most = asked.max_steps
    if most is not None and most < schedule.steps:
        raise ValueError(
            f"max_steps must be at least the number of steps, {schedule.steps}, not "
            f"{most}."
        )
    if engine.backsolves and (asked.ts is not None or schedule.count > 1):
        raise ValueError(
            "adjoint must not be BacksolveAdjoint here: its way back needs equal steps "
            "and no jump of the field between them."
        )


@compiled
def _batch(tree, y0, schedule: Schedule, engine: Engine):
    tree, batch = plain(tree), len(jax.tree.leaves(y0)[0])
    sign, most = schedule.sign, engine.max_steps

    def adaptive(tree, y, part):
        control, tolerances = engine.control, engine.tolerances
        if control is None:
            assert tolerances is not None, "they choose the steps then"
            control = controller(tolerances)
        assert most is not None, "a Solver has a limit"
        inputs = (engine.method, control, most, (part.t0, part.t1), sign)
        together = takes_batches(tree[0]) and time_invariant(tree[0])
        side = RightHandSide(*tree)
        states = Together(side) if together else each(side, part.t0, y)
        y1, found = solve_adaptive(states, y, *inputs)
        return y1, jax.tree.map(lambda x: x[None], statistics(*found))

    def fixed(y):
        return solve_fixed(tree, y, schedule, _rows(engine))[:2]

    def alone(y):
        return solve_chain(tree, y, schedule, engine)[:2]

    if _together(schedule.at(tree, 0)[0], y0, engine):
        y = jnp.moveaxis(y0, 0, -2)
        if engine.chooses:
            y, stats = schedule.over(tree, y, adaptive)
            stats = jax.tree.map(lambda x: jnp.sum(x, axis=0), stats)
        else:
            y, stats = fixed(y)
        y = jnp.moveaxis(y, -2, 0)
    elif engine.adjoint == "direct" and not engine.chooses and is_fast(y0):
        y, stats = jax.vmap(fixed)(y0)
    else:
        y, stats = jax.vmap(alone)(y0)
    stats = {k: jnp.broadcast_to(v, batch) for k, v in stats.items()}
    t0, t1 = (jnp.broadcast_to(t, batch) for t in (schedule.t0, schedule.t1))
    return y, stats, t0, t1


def _together(field, y0, engine):
    """Whether a field of one segment can solve a batch as one array."""
    suits = engine.chooses or takes_batches(field)
    direct = engine.adjoint == "direct"
    return suits and direct and is_fast(y0) and y0.ndim > 1 and len(y0) > 0
