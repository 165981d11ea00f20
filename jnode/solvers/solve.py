"""Integrating a vector field: one call, whichever the field, state and solver."""

import contextlib
import dataclasses
import functools
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jnode.constraints import plain
from jnode.fields import AbstractVectorField
from jnode.fields.base import takes_batches, time_invariant
from jnode.solvers.adaptive import controller, first_step, solve_adaptive
from jnode.solvers.arguments import check_agreement, is_backsolve, name_of, shares_of
from jnode.solvers.fixed import solve_fixed
from jnode.solvers.schedule import Schedule, Segments, cut, plan
from jnode.solvers.solution import Solution, statistics
from jnode.solvers.solver import Solver
from jnode.solvers.state import RightHandSide, is_fast, promoted, real_dtype
from jnode.solvers.tableaus import rows, tableau
from jnode.solvers.through import (
    counts,
    fixed_steps,
    solve_chain,
    solve_whole,
    solver_adjoint,
)

MAX_STEPS = 4096
"""Diffrax's limit where a step size controller of Diffrax's is given."""

# Compiled once for all calls outside jit; inside, the code that is called.
_compiled = functools.partial(eqx.filter_jit, inline=True)


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
    sample by itself, so no sample changes another's result. No step crosses a jump of a
    `PiecewiseField`, wherever in `field` or `args` it stands.

    Fixed steps of an explicit Runge-Kutta method on one array run in a scan, which can
    be differentiated in both modes and any number of times. All else goes through
    `diffrax.diffeqsolve`. Outside jit, calls that differ in numbers alone compile once.

    **Arguments:**

    - `field`: any function `f(t, y, args)`.
    - `y0`: the state $y(t_0)$: any PyTree of arrays or numbers. Dtypes are promoted as
        in Diffrax, so that integers become floats.
    - `solver`: a `jnode.Solver`, which knows its steps; or an ODE solver of Diffrax,
        with one of `steps`, `ts`, `stepsize_controller` and `dt0`.
    - `t0`, `t1`: numbers, or scalar arrays that may be traced. Where one is traced and
        the field jumps, all its jumps must lie between them.
    - `args`: handed to the field.
    - `steps`: the number of equal steps.
    - `ts`: the times that steps end at, from `t0` to `t1`.
    - `dt0`: the first step of a `stepsize_controller`; alone, the length of all steps.
    - `stepsize_controller`, `adjoint`, `saveat`, `event`: Diffrax's. The adjoint is by
        default the solver's own, and Diffrax's default for a Diffrax solver.
    - `max_steps`: past which the solve fails; by default the solver's own, 4096 for a
        step size controller, and as many as there are for fixed steps.
    - `throw`: whether a failure raises. If not, `y` is the state that was reached,
        perhaps not finite, and `stats["num_failed"]` and `result` tell: look at both.

    **Returns:** a `Solution`.

    **Raises:** `TypeError` for a solver that is none; `ValueError` for arguments that
    contradict each other, and fixed steps that cross a jump; with `throw`, at run time,
    under jit too, where a solve takes more than `max_steps` steps or the state ceases
    to be finite.
    """
    given = {
        "steps": steps,
        "ts": ts,
        "dt0": dt0,
        "stepsize_controller": stepsize_controller,
    }
    given = {name: value for name, value in given.items() if value is not None}
    y0 = promoted(field, y0, t0, t1, args)
    options = _Options(adjoint, saveat, event, max_steps, throw)
    if isinstance(solver, Solver):
        check_agreement(solver, given, options)
        return _ours(field, y0, solver, t0, t1, args, options)
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(
            "solver must be a jnode.Solver or a solver of Diffrax, as diffrax.Tsit5(), "
            f"not {name_of(solver)}."
        )
    return _theirs(field, y0, solver, t0, t1, args, given, options)


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
        raise TypeError(f"solver must be a jnode.Solver, not {name_of(solver)}.")
    if isinstance(y0, list) and isinstance(field, AbstractVectorField):
        y0 = np.asarray(y0)
    y0 = jax.tree.map(jnp.asarray, y0)
    one = jax.tree.map(lambda y: jax.ShapeDtypeStruct(y.shape[1:], y.dtype), y0)
    like = eqx.filter_eval_shape(promoted, field, one, t0, t1, args)
    y0 = jax.tree.map(lambda y, one: jnp.asarray(y, one.dtype), y0, like)
    tree = (field, args)
    steps = _steps(tree, y0, solver, t0, t1)
    return _batch(tree, y0, steps, *_parts(solver), throw)


class _Options(NamedTuple):
    """What Diffrax is asked for beyond the state at the end."""

    adjoint: diffrax.AbstractAdjoint | None
    saveat: diffrax.SaveAt | None
    event: diffrax.Event | None
    max_steps: int | None
    throw: bool

    @property
    def saves(self) -> bool:
        return self.saveat is not None or self.event is not None


def _ours(field, y0, solver, t0, t1, args, options):
    tree = (field, args)
    steps = _steps(tree, y0, solver, t0, t1)
    if options.saves:
        return _save(tree, y0, steps, solver, options)
    if _is_plain(solver) and options.adjoint is None and is_fast(y0):
        method = rows(tableau(solver.name))
        return _fixed(tree, y0, steps, method, str(solver), options.throw)
    return _chain(tree, y0, steps, *_parts(solver), options.adjoint, options.throw)


def _steps(tree, y0, solver, t0, t1) -> Schedule | Segments:
    dtype = real_dtype(y0)
    if solver.adaptive:
        return cut(tree, t0, t1, dtype)
    name = "steps" if solver.grid is None else "grid"
    return plan(tree, t0, t1, solver.shares, dtype, name)


def _parts(solver):
    """A solver without its tolerances, and they, so that others compile nothing anew.

    They may be traced (`Solver.at`).
    """
    if not solver.adaptive:
        return solver, None
    tolerances = jnp.stack([jnp.asarray(x) for x in solver.tolerances])
    return dataclasses.replace(solver, rtol=None, atol=None), tolerances


def _is_plain(solver):
    return not solver.adaptive and solver.adjoint == "direct"


def _save(tree, y0, steps, solver, options):
    adjoint, first, dt0 = options.adjoint, None, None
    if isinstance(steps, Schedule):
        name = "steps" if solver.grid is None else "grid"
        backsolve = solver.adjoint == "backsolve" or is_backsolve(adjoint)
        control, dt0, most = _control(steps, name, backsolve)
        parts = steps.segments
    else:
        bare, tolerances = _parts(solver)
        control, most, parts = None, solver.max_steps, steps
        first = (bare.name, tolerances)
    adjoint = adjoint or solver_adjoint(solver, most)
    method = solver.diffrax()
    options = options._replace(adjoint=adjoint, max_steps=most)
    return _whole(tree, y0, parts, method, control, dt0, options, first)


def _theirs(field, y0, solver, t0, t1, args, given, options):
    shares, name = shares_of(given, t0, t1)
    tree, dtype = (field, args), real_dtype(y0)
    adjoint = options.adjoint or diffrax.RecursiveCheckpointAdjoint()
    dt0 = given.get("dt0")
    if shares is None:
        parts = cut(tree, t0, t1, dtype)
        control = given.get("stepsize_controller", diffrax.ConstantStepSize())
        adaptive = isinstance(control, diffrax.AbstractAdaptiveStepSizeController)
        if parts.inside and not adaptive:
            raise ValueError(
                f"steps or ts must be given for a field that jumps (at t = "
                f"{parts.inside[0]:g}), so that no step crosses a jump; "
                f"{name_of(control)} knows of none."
            )
        most = MAX_STEPS if options.max_steps is None else options.max_steps
        options = options._replace(adjoint=adjoint, max_steps=most)
        return _whole(tree, y0, parts, solver, control, dt0, options, None)
    schedule = plan(tree, t0, t1, shares, dtype, name)
    if options.max_steps is not None and options.max_steps < schedule.steps:
        raise ValueError(
            f"max_steps must be at least the number of steps, {schedule.steps}, not "
            f"{options.max_steps}."
        )
    if options.adjoint is None and not options.saves and is_fast(y0):
        with contextlib.suppress(TypeError):  # no explicit method: Diffrax's loop
            method = rows(tableau(solver))
            return _fixed(tree, y0, schedule, method, name_of(solver), options.throw)
    control, dt0, most = _control(schedule, name, is_backsolve(options.adjoint))
    most = max(most, options.max_steps or 0)
    options = options._replace(adjoint=adjoint, max_steps=most)
    return _whole(tree, y0, schedule.segments, solver, control, dt0, options, None)


def _control(schedule, name, backsolve):
    """Diffrax's controller of fixed steps, its first step and the number of steps."""
    if not backsolve:
        return fixed_steps(schedule), None, schedule.steps
    parts = schedule.segments
    if name != "steps" or parts.count > 1:
        raise ValueError(
            "adjoint must not be BacksolveAdjoint here: its way back needs equal steps "
            "and no jump of the field between them."
        )
    # Rounding may add a step of almost no length on the way back.
    dt0 = (parts.t1 - parts.t0) / schedule.steps
    return diffrax.ConstantStepSize(), dt0, schedule.steps + 1


@_compiled
def _fixed(tree, y0, schedule, method, label, throw):
    y, stats = solve_fixed(plain(tree), y0, schedule, method)
    return _finished(y, stats, schedule.segments, label, None, throw)


@_compiled
def _chain(tree, y0, steps, solver, tolerances, adjoint, throw):
    if tolerances is not None:
        tolerances = tolerances.astype(real_dtype(y0))
    y, stats = solve_chain(plain(tree), y0, steps, solver, tolerances, adjoint)
    return _finished(y, stats, _segments(steps), str(solver), solver.max_steps, throw)


def _segments(steps):
    return steps.segments if isinstance(steps, Schedule) else steps


@_compiled
def _batch(tree, y0, steps, solver, tolerances, throw):
    tree, parts = plain(tree), _segments(steps)
    if tolerances is not None:
        tolerances = tolerances.astype(real_dtype(y0))

    def fixed(y):
        return solve_fixed(tree, y, steps, rows(tableau(solver.name)))

    def adaptive(tree, y, times):
        side = RightHandSide(*tree)
        inputs = (solver.name, tolerances, solver.max_steps, times, parts.sign)
        y1, found = solve_adaptive(side, y, *inputs)
        return y1, statistics(*found)

    if _together(parts.at(tree, 0)[0], y0, solver):
        y = jnp.moveaxis(y0, 0, -2)
        if solver.adaptive:
            y, stats = parts.over(tree, y, parts.pairs, adaptive)
        else:
            y, stats = fixed(y)
        y = jnp.moveaxis(y, -2, 0)
    elif _is_plain(solver) and is_fast(y0):
        y, stats = jax.vmap(fixed)(y0)
    else:
        one = lambda y: solve_chain(tree, y, steps, solver, tolerances, None)  # noqa: E731
        y, stats = jax.vmap(one)(y0)
    batch = len(jax.tree.leaves(y0)[0])
    stats = {k: jnp.broadcast_to(v, batch) for k, v in stats.items()}
    found = _finished(y, stats, parts, str(solver), solver.max_steps, throw)
    times = (jnp.broadcast_to(t, batch) for t in (parts.t0, parts.t1))
    return Solution(found.y, stats, *times)


def _together(field, y0, solver):
    """Whether a batch can be solved as one array, by a field of one segment."""
    if solver.adjoint != "direct" or not is_fast(y0) or y0.ndim < 2:
        return False
    if not takes_batches(field):
        return False
    return not solver.adaptive or time_invariant(field)


@_compiled
def _whole(tree, y0, parts, method, control, dt0, options, first):
    tree, extra = plain(tree), 0
    if first is not None:
        name, tolerances = first
        tolerances = tolerances.astype(real_dtype(y0))
        begun, inputs = parts.at(tree, 0)
        length = first_step(begun, y0, inputs, name, tolerances, parts.t0, parts.sign)
        dt0, extra = jnp.asarray(parts.sign, length.dtype) * length, 2
        control = controller(tolerances)
    adjoint, saveat, event, max_steps, throw = options
    y, sol = solve_whole(
        tree,
        y0,
        parts,
        method,
        control=control,
        dt0=dt0,
        max_steps=max_steps,
        adjoint=adjoint,
        saveat=saveat,
        event=event,
    )
    if throw:
        y, sol = sol.result.error_if((y, sol), ~diffrax.is_okay(sol.result))
        y, sol = eqx.error_if(
            (y, sol), ~_is_finite(y), _NOT_FINITE.format(name_of(method))
        )
    stats = counts(sol, method, 1 + len(parts.inside), extra)
    return Solution(y, stats, sol.t0, sol.t1, sol)


_NOT_FINITE = (
    "The state ceased to be finite while {} solved the ODE: look for NaN in the input, "
    "or take more steps or a smaller Lipschitz constant."
)


def _finished(y, stats, parts, label, max_steps, throw):
    if throw:
        failed = jnp.any(stats["num_failed"] > 0)
        y = eqx.branched_error_if(
            y,
            failed | ~_is_finite(y),
            jnp.where(failed, 0, 1),
            [
                f"{label} did not reach the end within max_steps={max_steps}: allow "
                "more steps, loosen the tolerances, or look for NaN in the input.",
                _NOT_FINITE.format(label),
            ],
        )
    return Solution(y, stats, parts.t0, parts.t1)


def _is_finite(y):
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(y)]
    return functools.reduce(jnp.logical_and, finite, jnp.asarray(True))
