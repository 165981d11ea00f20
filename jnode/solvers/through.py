"""Solves that Diffrax runs: adaptive steps of one state, other adjoints, PyTrees,
implicit methods, saved states and events."""

from typing import Any

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jnode.fields.piecewise import segment
from jnode.solvers.adaptive import (
    CHECKPOINTS,
    Sign,
    controller,
    first_step,
    turned,
)
from jnode.solvers.schedule import Schedule, Segments
from jnode.solvers.solution import statistics
from jnode.solvers.solver import Solver
from jnode.solvers.tableaus import evaluations

_END = diffrax.SaveAt(t1=True)


class FixedSteps(diffrax.AbstractStepSizeController):
    """Steps between given times, as `diffrax.StepTo`, that may leap over a jump.

    There a step ends with the last number before the jump, and the next starts with the
    first after it, so that no stage sees the other side.
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
    """A field that jumps, with what rules at `t` chosen among the solve's segments."""

    field: Any
    segments: Segments

    def __call__(self, t: Any, y: PyTree[Array], args: Any = None) -> PyTree[Array]:
        jumps = jnp.asarray(self.segments.inside, t.dtype)
        first, _ = self.segments.span
        index = first + jnp.sum(t >= jumps, dtype=int)
        field, args = segment((self.field, args), index, self.segments.marks)
        return field(t, y, args)


def fixed_steps(schedule: Schedule) -> FixedSteps:
    """A schedule's steps for Diffrax."""
    parts = schedule.segments
    starts = jnp.concatenate(schedule.starts)
    ends = jnp.append(starts[1:], parts.t1)
    leaps = [False] * schedule.steps
    at = 0
    for count in [len(part) for part in schedule.starts[:-1]]:
        at += count
        leaps[at] = True
        before = eqxi.prevbefore(starts[at])
        ahead = parts.t0 < parts.t1
        ends = ends.at[at - 1].set(jnp.where(ahead, before, starts[at]))
        starts = starts.at[at].set(jnp.where(ahead, starts[at], before))
    return FixedSteps(starts, ends, tuple(leaps))


def solve_chain(
    tree: tuple[Any, PyTree],
    y0: PyTree[Array],
    steps: Schedule | Segments,
    solver: Solver,
    tolerances: Float[Array, "2"] | None,
    adjoint: diffrax.AbstractAdjoint | None,
) -> tuple[PyTree[Array], dict[str, Any]]:
    """The state at the end of a `Solver`'s solve, segment after segment; statistics.

    Each segment is a solve of its own, so an adaptive solver chooses its first step
    anew after each jump.
    """
    segments = steps.segments if isinstance(steps, Schedule) else steps

    def one(tree, y, part):
        (a, b), starts = part
        if solver.adaptive:
            sol = solve_adaptively(
                tree, y, a, b, solver, tolerances, segments.sign, adjoint=adjoint
            )
        else:
            sol = _solve_starts(tree, y, a, b, starts, solver, adjoint)
        nfe = 2 if solver.adaptive else 0
        end = jax.tree.map(lambda ys: ys[-1], sol.ys)
        return end, counts(sol, solver.diffrax(), 1, nfe)

    pairs = segments.pairs
    each = steps.starts if isinstance(steps, Schedule) else [None] * len(pairs)
    return segments.over(tree, y0, list(zip(pairs, each, strict=True)), one)


def solve_adaptively(
    tree: tuple[Any, PyTree],
    y0: PyTree[Array],
    t0: Float[Array, ""],
    t1: Float[Array, ""],
    solver: Solver,
    tolerances: Float[Array, "2"],
    sign: Sign,
    *,
    adjoint: diffrax.AbstractAdjoint | None = None,
    saveat: diffrax.SaveAt = _END,
    throw: bool = False,
) -> diffrax.Solution:
    """An adaptive `Solver`'s solve of one segment, without a jump."""
    field, args = tree
    length = first_step(field, y0, args, solver.name, tolerances, t0, sign)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver.diffrax(),
        t0,
        t1,
        turned(sign, length),
        y0,
        args,
        stepsize_controller=controller(tolerances),
        max_steps=solver.max_steps,
        adjoint=adjoint or solver_adjoint(solver, solver.max_steps),
        saveat=saveat,
        throw=throw,
    )


def _solve_starts(tree, y0, t0, t1, starts, solver, adjoint):
    """A fixed-step `Solver`'s solve of one segment, by Diffrax."""
    field, args = tree
    if _backsolved(solver, adjoint):
        # The way back runs over the same steps in the other direction, which times
        # given one by one cannot; rounding may add a step of almost no length.
        control, steps = diffrax.ConstantStepSize(), len(starts) + 1
        dt0 = (t1 - t0) / len(starts)
    else:
        ends, steps, dt0 = jnp.append(starts[1:], t1), len(starts), None
        control = FixedSteps(starts, ends, (False,) * steps)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver.diffrax(),
        t0,
        t1,
        dt0,
        y0,
        args,
        stepsize_controller=control,
        max_steps=steps,
        adjoint=adjoint or solver_adjoint(solver, steps),
        throw=False,
    )


def _backsolved(solver, adjoint):
    if adjoint is None:
        return solver.adjoint == "backsolve"
    return isinstance(adjoint, diffrax.BacksolveAdjoint)


def solver_adjoint(solver: Solver, steps: int) -> diffrax.AbstractAdjoint:
    """The Diffrax adjoint that a `Solver` names, for at most so many steps."""
    if solver.adjoint == "backsolve":
        return diffrax.BacksolveAdjoint()
    if solver.adjoint == "checkpointed":
        return diffrax.RecursiveCheckpointAdjoint()
    # One checkpoint a fixed step: nothing is computed twice. Adaptive steps may be as
    # many as `max_steps`, but seldom are.
    most = min(CHECKPOINTS, steps) if solver.adaptive else steps
    return diffrax.RecursiveCheckpointAdjoint(checkpoints=most)


def solve_whole(
    tree: tuple[Any, PyTree],
    y0: PyTree[Array],
    segments: Segments,
    method: diffrax.AbstractSolver,
    *,
    control: diffrax.AbstractStepSizeController,
    dt0: Any,
    max_steps: int | None,
    adjoint: diffrax.AbstractAdjoint,
    saveat: diffrax.SaveAt | None,
    event: diffrax.Event | None,
) -> tuple[PyTree[Array], diffrax.Solution]:
    """One call of Diffrax over all segments: the last state, and Diffrax's solution.

    An adaptive controller stops at the jumps; one of fixed steps must do so itself.
    """
    field, args = tree
    if len(segments.marks) > 2:
        field = ByTime(field, segments)
    if segments.inside and isinstance(
        control, diffrax.AbstractAdaptiveStepSizeController
    ):
        jumps = jnp.asarray(segments.inside, segments.edges.dtype)
        control = diffrax.ClipStepSizeController(control, jump_ts=jumps)
    wanted = _END if saveat is None else saveat
    last = diffrax.SubSaveAt(t1=True)
    # Beside what is asked for, the state at the end.
    both = eqx.tree_at(lambda s: s.subs, wanted, (wanted.subs, last))
    sol = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        method,
        segments.t0,
        segments.t1,
        dt0,
        y0,
        args,
        stepsize_controller=control,
        max_steps=max_steps,
        adjoint=adjoint,
        saveat=both,
        event=event,
        throw=False,
    )
    (ts, _), (ys, ends) = sol.ts, sol.ys
    given = eqx.tree_at(
        lambda s: (s.ts, s.ys), sol, (ts, ys), is_leaf=lambda x: x is None
    )
    return jax.tree.map(lambda y: y[-1], ends), given


def counts(
    sol: diffrax.Solution, method: Any, starts: int, extra: int
) -> dict[str, Any]:
    """Diffrax's statistics under our names.

    The solve started so often anew, after a jump, and `extra` evaluations came before.
    """
    taken, kept, lost = (
        sol.stats[f"num_{name}steps"] for name in ("", "accepted_", "rejected_")
    )
    nfe = evaluations(method, taken, starts)
    failed = (~diffrax.is_okay(sol.result)).astype(jnp.int32)
    return statistics(taken, kept, lost, None if nfe is None else nfe + extra, failed)
