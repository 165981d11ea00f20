"""Integrating a vector field: one call, whichever the field, state and solver."""

import functools
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jnode.fields import AbstractVectorField
from jnode.linear import plain
from jnode.solvers.adaptive import solve_adaptive
from jnode.solvers.fixed import RightHandSide, solve_fixed
from jnode.solvers.schedule import Schedule, is_known, plan
from jnode.solvers.solution import (
    Solution,
    is_fast,
    promoted,
    real_dtype,
    statistics,
)
from jnode.solvers.solver import Solver
from jnode.solvers.tableaus import Rows, rows, tableau
from jnode.solvers.through import Engine, counts, is_adaptive, solve_chain, solve_whole

MAX_STEPS = 4096
"""Diffrax's limit where a step size controller of Diffrax's is given."""

# Compiled once for all calls outside jit; inside, the code that is called.
_compiled = functools.partial(eqx.filter_jit, inline=True)


class _Asked(NamedTuple):
    """What a call of `solve` asks for beside the field, the state and the times."""

    steps: int | None = None
    ts: Any = None
    dt0: Any = None
    stepsize_controller: diffrax.AbstractStepSizeController | None = None
    adjoint: diffrax.AbstractAdjoint | None = None
    saveat: diffrax.SaveAt | None = None
    event: diffrax.Event | None = None
    max_steps: int | None = None
    throw: bool = True

    def given(self, *names: str) -> list[str]:
        """Which of these arguments were given."""
        return [name for name in names if getattr(self, name) is not None]


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

    One state at a time: an adaptive solver under `jax.vmap` chooses the steps of each
    sample by itself. No step crosses a jump of a `PiecewiseField`, wherever in `field`
    or `args` it stands. Calls outside jit that differ in numbers alone compile once.

    **Arguments:**

    - `field`: any function `f(t, y, args)`; `args` are handed to it.
    - `y0`: the state: any PyTree of arrays or numbers, promoted as in Diffrax.
    - `solver`: a `jnode.Solver`, which knows its steps; or an ODE solver of Diffrax,
        with one of `steps`, `ts`, `stepsize_controller` and `dt0`.
    - `t0`, `t1`: numbers, or traced scalars, which must hold all the field's jumps.
    - `steps`: the number of equal steps; `ts`: the times that steps end at.
    - `dt0`: the first step of a `stepsize_controller`; alone, the length of all steps.
    - `stepsize_controller`, `adjoint`, `saveat`, `event`: Diffrax's.
    - `max_steps`: past which the solve fails; by default the solver's own, and 4096 for
        a step size controller.
    - `throw`: whether a failure raises. If not, `y` is the state that was reached,
        perhaps not finite; look at `stats["num_failed"]` and `result` too.

    **Raises:** `TypeError` for a solver that is none; `ValueError` for arguments that
    contradict each other, and fixed steps that cross a jump; with `throw`, at run time,
    under jit too, where a solve takes more than `max_steps` steps or the state ceases
    to be finite.
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
    """Integrates a batch of states: what `jax.vmap` of `solve` gives, quicker.

    All states move together, in a layout that moves no axis, and an adaptive solver
    still chooses the steps of each sample by itself. Gradients of an adaptive solve are
    in reverse mode.

    **Arguments:** as of `solve`, but for a batch of states; `args` are every state's.

    **Returns:** a `Solution` whose every array has the batch's axis in front.

    **Raises:** as `solve`.
    """
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a jnode.Solver, not {_name_of(solver)}.")
    if isinstance(y0, list) and isinstance(field, AbstractVectorField):
        y0 = np.asarray(y0)
    y0 = jax.tree.map(jnp.asarray, y0)
    one = jax.tree.map(lambda y: jax.ShapeDtypeStruct(y.shape[1:], y.dtype), y0)
    like = eqx.filter_eval_shape(promoted, field, one, t0, t1, args)
    y0 = jax.tree.map(lambda y, one: jnp.asarray(y, one.dtype), y0, like)
    tree, dtype = (field, args), real_dtype(y0)
    schedule = solver.plan(tree, t0, t1, dtype).astype(dtype)
    engine = _engine(solver, solver.adjoint, dtype)
    return Solution(*_batch(tree, y0, schedule, engine, _label(solver), throw))


def _ours(tree, y0, solver, t0, t1, asked):
    """A solve by a `jnode.Solver`."""
    _check_agreement(solver, asked)
    dtype = real_dtype(y0)
    schedule = solver.plan(tree, t0, t1, dtype)
    engine = _engine(solver, asked.adjoint or solver.adjoint, dtype)
    if engine.adjoint == "direct":
        found = _quick(tree, y0, schedule, engine, _label(solver), asked)
        if found is not None:
            return found
    if asked.given("saveat", "event"):
        return _saved(tree, y0, schedule, engine, asked)
    inputs = (schedule.astype(dtype), engine, _label(solver), asked.throw)
    *found, ends = _chain(tree, y0, *inputs)
    kept = ends is not None or not engine.chooses
    return Solution(*found, schedule if kept else None, ends)


def _theirs(tree, y0, solver, t0, t1, asked):
    """A solve by a solver of Diffrax."""
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(
            "solver must be a jnode.Solver or a solver of Diffrax, as diffrax.Tsit5(), "
            f"not {_name_of(solver)}."
        )
    _check_choice(asked, t0, t1)
    schedule = plan(tree, t0, t1, dtype=real_dtype(y0), steps=asked.steps, ts=asked.ts)
    adjoint = asked.adjoint or "checkpointed"
    engine = Engine(solver, adjoint, max_steps=asked.max_steps)
    if asked.given("steps", "ts"):
        _check_fixed(schedule, engine, asked)
        found = _quick(tree, y0, schedule, engine, _name_of(solver), asked)
        return found or _saved(tree, y0, schedule, engine, asked)
    control = asked.stepsize_controller or diffrax.ConstantStepSize()
    if schedule.inside and not is_adaptive(control):
        raise ValueError(
            f"steps or ts must be given for a field that jumps (at t = "
            f"{schedule.inside[0]:g}), so that no step crosses a jump; "
            f"{_name_of(control)} knows of none."
        )
    most = MAX_STEPS if asked.max_steps is None else asked.max_steps
    engine = engine._replace(control=control, dt0=asked.dt0, max_steps=most)
    return _saved(tree, y0, schedule, engine, asked)


def _engine(solver, adjoint, dtype):
    method = solver.diffrax()
    if not solver.adaptive:
        return Engine(method, adjoint)
    # Data, so that other ones compile nothing anew; they may be traced (`Solver.at`).
    tolerances = jnp.stack([jnp.asarray(x) for x in solver.tolerances]).astype(dtype)
    return Engine(method, adjoint, tolerances=tolerances, max_steps=solver.max_steps)


def _label(solver):
    return solver.name if solver.adaptive else str(solver)


def _quick(tree, y0, schedule, engine, label, asked):
    """The solve in a plain scan, where that is all that is asked for."""
    if engine.chooses or asked.given("adjoint", "saveat", "event") or not is_fast(y0):
        return None
    try:
        method = rows(tableau(engine.method))
    except TypeError:  # no explicit method
        return None
    inputs = (schedule.astype(y0.dtype), method, label, asked.throw)
    return Solution(*_fixed(tree, y0, *inputs), schedule)


def _saved(tree, y0, schedule, engine, asked):
    times = schedule.astype(real_dtype(y0))
    inputs = (asked.saveat, asked.event, asked.throw)
    *found, ends, inner = _whole(tree, y0, times, engine, *inputs)
    known = not engine.chooses and asked.event is None
    kept = schedule if known or ends is not None else None
    return Solution(*found, kept, ends, inner)


def _check_agreement(solver, asked):
    """Raises `ValueError` for arguments that contradict a `jnode.Solver`."""
    for name in asked.given("steps", "ts", "dt0", "stepsize_controller"):
        value = getattr(asked, name)
        if name == "steps" and solver.grid is None and value == solver.steps:
            continue
        raise ValueError(
            f"{name} must be left out beside a jnode.Solver, which has its own steps "
            f"({solver}), or be the same; it is {value}. Give a Diffrax solver to "
            f"choose {name} here."
        )
    if asked.adjoint is not None:
        if solver.adjoint != "direct":
            raise ValueError(
                f"adjoint must be left out beside a jnode.Solver with "
                f"adjoint={solver.adjoint!r}; it is {_name_of(asked.adjoint)}."
            )
        if isinstance(asked.adjoint, diffrax.BacksolveAdjoint) and solver.grid:
            raise ValueError(
                "adjoint must not be BacksolveAdjoint on a grid: it needs equal steps."
            )
    most = asked.max_steps
    if most is not None and solver.adaptive and most != solver.max_steps:
        raise ValueError(
            f"max_steps must be left out beside {solver}, which has max_steps="
            f"{solver.max_steps}; it is {most}."
        )
    if most is not None and not solver.adaptive and most < solver.steps:
        raise ValueError(
            f"max_steps must be at least the {solver.steps} steps of {solver}, not "
            f"{most}."
        )


def _check_choice(asked, t0, t1):
    """Raises `ValueError` unless a call says once what steps a Diffrax solver takes."""
    ways = asked.given("steps", "ts", "stepsize_controller")
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
    if dt0 is not None and is_known(dt0, t0, t1) and (t1 - t0) * float(dt0) < 0:
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


@_compiled
def _fixed(tree, y0, schedule: Schedule, method: Rows, label, throw):
    y = solve_fixed(plain(tree), y0, schedule, method)
    steps = schedule.steps
    stats = statistics(steps, steps, 0, steps * len(method[1]), 0)
    y = _finished(y, stats, label, None, throw)
    return y, stats, schedule.t0, schedule.t1


@_compiled
def _chain(tree, y0, schedule: Schedule, engine: Engine, label, throw):
    y, stats, ends = solve_chain(plain(tree), y0, schedule, engine)
    y = _finished(y, stats, label, engine.max_steps, throw)
    return y, stats, schedule.t0, schedule.t1, ends


@_compiled
def _batch(tree, y0, schedule: Schedule, engine: Engine, label, throw):
    tree, batch = plain(tree), len(jax.tree.leaves(y0)[0])
    steps = schedule.steps

    def fixed(y):
        method = rows(tableau(engine.method))
        stats = statistics(steps, steps, 0, steps * len(method[1]), 0)
        return solve_fixed(tree, y, schedule, method), stats

    def adaptive(tree, y, part):
        inputs = (engine.method, engine.tolerances, engine.max_steps)
        times = (part.t0, part.t1)
        y1, found = solve_adaptive(
            RightHandSide(*tree), y, *inputs, times, schedule.sign
        )
        return y1, jax.tree.map(lambda x: x[None], statistics(*found))

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
        y, stats = jax.vmap(lambda y: solve_chain(tree, y, schedule, engine)[:2])(y0)
    stats = {k: jnp.broadcast_to(v, batch) for k, v in stats.items()}
    y = _finished(y, stats, label, engine.max_steps, throw)
    times = (jnp.broadcast_to(t, batch) for t in (schedule.t0, schedule.t1))
    return y, stats, *times


def _together(field, y0, engine):
    """Whether a batch can be solved as one array, by a field of one segment."""
    if engine.adjoint != "direct" or not is_fast(y0) or y0.ndim < 2:
        return False
    if not getattr(field, "takes_batches", False):
        return False
    return not engine.chooses or field.time_invariant


@_compiled
def _whole(tree, y0, schedule: Schedule, engine: Engine, saveat, event, throw):
    y, sol, ends = solve_whole(plain(tree), y0, schedule, engine, saveat, event)
    if throw:
        y, sol = sol.result.error_if((y, sol), ~diffrax.is_okay(sol.result))
        label = _NOT_FINITE.format(_name_of(engine.method))
        y, sol = eqx.error_if((y, sol), ~_is_finite(y), label)
    first_steps = 0 if engine.tolerances is None else 2
    stats = counts(sol, engine.method, 1 + len(schedule.inside), first_steps)
    return y, stats, sol.t0, sol.t1, ends, sol


_NOT_FINITE = (
    "The state ceased to be finite while {} solved the ODE: look for NaN in the input, "
    "or take more steps or a smaller Lipschitz constant."
)


def _finished(y, stats, label, max_steps, throw):
    """The state; where asked, an error unless the solve reached its end."""
    if not throw:
        return y
    failed = jnp.any(stats["num_failed"] > 0)
    return eqx.branched_error_if(
        y,
        failed | ~_is_finite(y),
        jnp.where(failed, 0, 1),
        [
            f"{label} did not reach the end within max_steps={max_steps}: allow more "
            "steps, loosen the tolerances, or look for NaN in the input.",
            _NOT_FINITE.format(label),
        ],
    )


def _is_finite(y):
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(y)]
    return functools.reduce(jnp.logical_and, finite, jnp.asarray(True))


def _name_of(x):
    """Of a class, or of what something is an instance of."""
    return x.__name__ if isinstance(x, type) else type(x).__name__
