"""Solves that Diffrax runs: adaptive steps of one state, other adjoints, PyTrees,
implicit methods, saved states and events."""

from typing import Any, TypeGuard

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jnode.constraints import plain
from jnode.fields.base import AbstractVectorField, of_shape
from jnode.fields.piecewise import segment
from jnode.solvers.adaptive import CHECKPOINTS, controller, first_step, turned
from jnode.solvers.schedule import Schedule
from jnode.solvers.solution import (
    compiled,
    statistics,
)
from jnode.solvers.solver import Engine
from jnode.solvers.tableaus import evaluations, tableau

END = diffrax.SaveAt(t1=True)
_STEPS = diffrax.SubSaveAt(steps=True, fn=lambda t, y, args: None)


class FixedSteps(diffrax.AbstractStepSizeController):
    """Steps between given times, as `diffrax.StepTo`, with a gap at each jump.

    At a jump one step ends at the last floating-point number before it, and the next
    starts at the first number after it, so that no stage crosses the jump.
    """

    starts: Float[Array, " steps"]
    ends: Float[Array, " steps"]
    leaps: tuple[bool, ...] = eqx.field(static=True)

    def wrap(self, direction: Any) -> "FixedSteps":
        turn = jnp.asarray(direction, self.starts.dtype)
        return FixedSteps(self.starts * turn, self.ends * turn, self.leaps)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        del terms, t0, t1, y0, dt0, args, func, error_order
        return self.ends[0], 1

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        del t0, y0, y1_candidate, args, y_error, error_order
        index = jnp.minimum(controller_state, len(self.leaps) - 1)
        leap = jnp.asarray(self.leaps)[index] & (controller_state < len(self.leaps))
        start = jnp.where(leap, self.starts[index], t1)
        state = controller_state + 1
        return True, start, self.ends[index], leap, state, diffrax.RESULTS.successful


class ByTime(eqx.Module):
    """A field that jumps in time, evaluated by the segment that contains `t`."""

    field: Any
    schedule: Schedule

    def __call__(self, t: Any, y: PyTree[Array], args: Any = None) -> PyTree[Array]:
        jumps = jnp.asarray(self.schedule.inside, t.dtype)
        index = min(self.schedule.order) + jnp.sum(t >= jumps, dtype=int)
        field, args = segment((self.field, args), index, self.schedule.marks)
        return field(t, y, args)


class OfShape(eqx.Module):
    """A field with bounds, whose value must have the state's shape."""

    field: Any

    def __call__(self, t: Any, y: PyTree[Array], args: Any = None) -> PyTree[Array]:
        value = self.field(t, y, args)
        return of_shape(value, y) if eqx.is_array_like(y) else value


def check_stages_within(method: Any) -> None:
    """Raises `ValueError` for a method that evaluates a field outside of the step: next
    to a jump that is another field."""
    times = tableau(method)[2]
    if np.any((times < 0) | (times > 1)):
        raise ValueError(
            "solver must evaluate the field within each step here, since the field "
            f"jumps in time, and the times of its stages are {times.tolist()}."
        )


def fixed_steps(schedule: Schedule) -> FixedSteps:
    """A schedule's steps for Diffrax."""
    starts = jnp.concatenate(schedule.starts)
    ends = jnp.append(starts[1:], schedule.t1)
    leaps = [False] * schedule.steps
    at = 0
    for count in [len(part) for part in schedule.starts[:-1]]:
        at += count
        leaps[at] = True
        before = eqxi.prevbefore(starts[at])
        ahead = schedule.t0 < schedule.t1
        ends = ends.at[at - 1].set(jnp.where(ahead, before, starts[at]))
        starts = starts.at[at].set(jnp.where(ahead, starts[at], before))
    return FixedSteps(starts, ends, tuple(leaps))


def _run(
    tree: tuple[Any, PyTree],
    y0: PyTree[Array],
    schedule: Schedule,
    engine: Engine,
    saveat: diffrax.SaveAt = END,
    event: diffrax.Event | None = None,
) -> diffrax.Solution:
    """One call of Diffrax over a schedule.

    An adaptive controller stops at the jumps; one of fixed steps must do so itself.
    """
    field, args = tree
    control, dt0, steps = engine.control, engine.dt0, engine.max_steps
    needed = None
    if engine.tolerances is not None:
        control, sign = controller(engine.tolerances), schedule.sign
        inputs = (engine.method, control, schedule.t0, sign)
        begun, given = schedule.at(tree, 0)
        dt0 = turned(sign, first_step(begun, y0, given, *inputs))
    elif control is None and engine.backsolves:
        # The backward solve takes the same steps in the other direction, which single
        # given times do not allow; rounding may add a step of almost no length.
        control, needed = diffrax.ConstantStepSize(), schedule.steps + 1
        dt0 = (schedule.t1 - schedule.t0) / schedule.steps
    elif control is None:
        control, needed = fixed_steps(schedule), schedule.steps
    steps = max(needed, steps or 0) if needed else steps
    certified = isinstance(field, AbstractVectorField)
    if len(schedule.marks) > 2:
        if isinstance(engine.method, diffrax.AbstractERK):
            check_stages_within(engine.method)
        field = ByTime(field, schedule)
    if certified:
        field = OfShape(field)
    if schedule.inside and is_adaptive(control):
        jumps = jnp.asarray(schedule.inside, schedule.edges.dtype)
        control = diffrax.ClipStepSizeController(control, jump_ts=jumps)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        engine.method,
        schedule.t0,
        schedule.t1,
        dt0,
        y0,
        args,
        stepsize_controller=control,
        max_steps=steps,
        adjoint=_adjoint(engine, steps),
        saveat=saveat,
        event=event,
        throw=False,
    )


def is_adaptive(
    control: diffrax.AbstractStepSizeController,
) -> TypeGuard[diffrax.AbstractAdaptiveStepSizeController]:
    return isinstance(control, diffrax.AbstractAdaptiveStepSizeController)


def _adjoint(engine, steps):
    if not isinstance(engine.adjoint, str):
        return engine.adjoint
    if engine.adjoint == "backsolve":
        return diffrax.BacksolveAdjoint()
    if engine.adjoint == "checkpointed":
        return diffrax.RecursiveCheckpointAdjoint()
    # One checkpoint for each fixed step, so nothing is computed twice. Adaptive steps
    # may number `max_steps`, but rarely do.
    most = min(CHECKPOINTS, steps) if engine.chooses else steps
    return diffrax.RecursiveCheckpointAdjoint(checkpoints=most)


@compiled
def solve_chain(
    tree: tuple[Any, PyTree],
    y0: PyTree[Array],
    schedule: Schedule,
    engine: Engine,
) -> tuple[PyTree[Array], dict[str, Array], Array, Array, Float[Array, " _"] | None]:
    """Solves segment after segment. Returns the final state, the statistics, the times
    $t_0$ and $t_1$, and the ends of the steps, if a controller chose them.

    Each segment is a separate solve, so an adaptive solver chooses a new first step
    after each jump, which takes two evaluations.
    """
    records = engine.chooses and not engine.backsolves
    saveat = diffrax.SaveAt(subs=(END.subs, _STEPS)) if records else END

    def one(tree, y, part):
        sol = _run(tree, y, part, engine, saveat)
        assert sol.ts is not None and sol.ys is not None, "the end is saved"
        ends = jax.lax.stop_gradient(sol.ts[1]) if records else None
        states = sol.ys[0] if records else sol.ys
        stats = jax.tree.map(lambda x: x[None], _counts(sol, engine, 1))
        return jax.tree.map(lambda ys: ys[-1], states), (stats, ends)

    y, (stats, ends) = schedule.over(plain(tree), y0, one)
    stats = jax.tree.map(lambda x: jnp.sum(x, axis=0), stats)
    return y, stats, schedule.t0, schedule.t1, ends


@compiled
def solve_whole(
    tree: tuple[Any, PyTree],
    y0: PyTree[Array],
    schedule: Schedule,
    engine: Engine,
    saveat: diffrax.SaveAt | None,
    event: diffrax.Event | None,
) -> tuple[
    PyTree[Array],
    dict[str, Array],
    Array,
    Array,
    Float[Array, " _"] | None,
    diffrax.Solution,
]:
    """As `solve_chain`, but by a single call of Diffrax, whose own solution comes last.

    The ends of the steps are returned if they are saved and not known in advance.
    """
    subs = END.subs if saveat is None else saveat.subs
    each = jax.tree.leaves(subs, is_leaf=lambda x: isinstance(x, diffrax.SubSaveAt))
    unknown = engine.chooses or event is not None
    steps = _STEPS if unknown and any(sub.steps for sub in each) else None
    if saveat is not None:
        # Besides what `saveat` requests: the final state, and the times of steps.
        saveat = eqx.tree_at(lambda s: s.subs, saveat, (subs, END.subs, steps))
    sol = _run(plain(tree), y0, schedule, engine, saveat or END, event)
    assert sol.ts is not None and sol.ys is not None, "the end is saved"
    ts, ys, at_end, ends = sol.ts, sol.ys, sol.ys, None
    if saveat is not None:
        (ts, _, ends), (ys, at_end, _) = sol.ts, sol.ys
    y = jax.tree.map(lambda y: y[-1], at_end)
    sol = eqx.tree_at(
        lambda s: (s.ts, s.ys), sol, (ts, ys), is_leaf=lambda x: x is None
    )
    stats = _counts(sol, engine, 1 + len(schedule.inside))
    return y, stats, sol.t0, sol.t1, ends, sol


def _counts(sol, engine, starts) -> dict[str, Array]:
    """Diffrax's statistics under our names, for a solve that restarts at each jump."""
    taken, kept, lost = (
        sol.stats[f"num_{name}steps"] for name in ("", "accepted_", "rejected_")
    )
    nfe = evaluations(engine.method, taken, starts)
    if engine.tolerances is not None:
        nfe = nfe + 2  # they choose the first step
    failed = (~diffrax.is_okay(sol.result)).astype(jnp.int32)
    return statistics(taken, kept, lost, nfe, failed)
