"""Integrating a vector field: one call, whichever the solver."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jnode.fields import AbstractVectorField, PiecewiseField
from jnode.solvers.adaptive import controller, evaluations, first_step, solve_adaptive
from jnode.solvers.inside import combine, solve_inside
from jnode.solvers.solver import Solver
from jnode.solvers.tableaus import tableau


class Solution(eqx.Module):
    """The end of a solve.

    - `y`: the state at `t1`.
    - `stats`: `num_steps`, `num_accepted_steps`, `num_rejected_steps`, `nfe`, the
        number of evaluations of the vector field, and `num_failed`, the solves (one of
        each piece of the field) that `max_steps` ended before their time.
    """

    y: Float[Array, "*state"]
    stats: dict[str, Any]


def solve(
    field: AbstractVectorField,
    y0: Float[Array, "*state"],
    solver: Solver,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    throw: bool = True,
) -> Solution:
    """Integrates $dy/dt = f(t, y)$ from `t0` to `t1`.

    One state at a time: an adaptive solver under `jax.vmap` chooses the steps of each
    sample by itself, so no sample changes another's result.

    **Arguments:** the vector field, the state $y(t_0)$, the solver, and the times;
    whether a failure raises. If not, `y` is the state that was reached, perhaps not
    finite, and `stats["num_failed"]` tells: look at both.

    **Returns:** a `Solution`.

    **Raises:** with `throw`, at run time, under jit too, where an adaptive solver takes
    more than `max_steps` steps or the state ceases to be finite.
    """
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a jnode.Solver, not {type(solver).__name__}.")
    return _solve(field.bake(), y0, solver, t0, t1, throw, _one)


def solve_batch(
    field: AbstractVectorField,
    y0: Float[Array, "batch *state"],
    solver: Solver,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    throw: bool = True,
) -> Solution:
    """Integrates a batch of states: what `jax.vmap` of `solve` gives, quicker.

    All states move together, in a layout that moves no axis, and an adaptive solver
    still chooses the steps of each sample by itself. Gradients in reverse mode.

    **Arguments:** as of `solve`, but for a batch of states.

    **Returns:** a `Solution` whose every array has the batch's axis in front.

    **Raises:** as `solve`.
    """
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a jnode.Solver, not {type(solver).__name__}.")
    field = field.bake()
    if not _together(field, solver):
        return jax.vmap(lambda y: _solve(field, y, solver, t0, t1, throw, _one))(y0)
    one = _adaptive if solver.adaptive else _scan
    solution = _solve(field, jnp.moveaxis(y0, 0, -2), solver, t0, t1, throw, one)
    stats = {k: jnp.broadcast_to(v, len(y0)) for k, v in solution.stats.items()}
    return Solution(jnp.moveaxis(solution.y, -2, 0), stats)


def _together(field, solver):
    """Whether a batch can be solved as one array."""
    if solver.adjoint != "direct" or not field.takes_batches:
        return False
    piece = field.pieces if isinstance(field, PiecewiseField) else field
    return not solver.adaptive or piece.time_invariant


def _solve(field, y0, solver, t0, t1, throw, one):
    if isinstance(field, PiecewiseField):
        solution = _pieces(field, y0, solver, t0, t1, one)
    else:
        solution = one(field, y0, solver, t0, t1)
    if not throw:
        return solution
    failed = jnp.any(solution.stats["num_failed"] > 0)
    y = eqx.branched_error_if(
        solution.y,
        failed | ~jnp.all(jnp.isfinite(solution.y)),
        jnp.where(failed, 0, 1),
        [
            f"{solver} did not reach the end within max_steps={solver.max_steps}: "
            "allow more steps, loosen the tolerances, or look for NaN in the input.",
            f"The state ceased to be finite while {solver} solved the ODE: look for "
            "NaN in the input, or take more steps or a smaller Lipschitz constant.",
        ],
    )
    return Solution(y, solution.stats)


def step(
    field: AbstractVectorField,
    t: Float[Array, ""],
    h: Float[Array, ""],
    y: Float[Array, "*state"],
    solver: Solver,
) -> Float[Array, "*state"]:
    """One step of length `h` of the solver's explicit Runge-Kutta method."""
    a, b, c = (x.tolist() for x in tableau(solver.name))
    ks = []
    for i in range(len(b)):
        ks.append(field(t + c[i] * h, y + combine(h, a[i][:i], ks, y), None))
    return y + combine(h, b, ks, y)


def _one(field, y0, solver, t0, t1):
    if solver.adaptive or solver.adjoint != "direct":
        return _diffrax(field, y0, solver, t0, t1)
    return _scan(field, y0, solver, t0, t1)


def _pieces(field, y0, solver, t0, t1, one):
    check_span(field, t0, t1)
    times = field.times()
    parts = [solver.piece(k, field.count) for k in range(field.count)]
    if parts.count(parts[0]) == len(parts):
        # One piece is compiled, and the weights of each are read as its turn comes.
        arrays, static = eqx.partition(field.pieces, eqx.is_array)
        ends = jnp.asarray(times, y0.dtype)

        def body(y, piece):
            arrays, start, end = piece
            whole = eqx.combine(arrays, static)
            solution = one(whole, y, parts[0], start, end)
            return solution.y, solution.stats

        y, stats = jax.lax.scan(body, y0, (arrays, ends[:-1], ends[1:]))
        return Solution(y, {k: jnp.sum(v, axis=0) for k, v in stats.items()})
    y, stats = y0, []
    for k, part in enumerate(parts):
        solution = one(field.piece(k), y, part, times[k], times[k + 1])
        y = solution.y
        stats.append(solution.stats)
    return Solution(y, jax.tree.map(lambda *counts: sum(counts), *stats))


def check_span(field: PiecewiseField, t0: float, t1: float) -> None:
    """Raises `ValueError` where a field's pieces are not those of the interval."""
    if (t0, t1) != (field.t0, field.t1):
        raise ValueError(
            f"t0 and t1 must be the field's own, {field.t0:g} and {field.t1:g}, with "
            f"its pieces between them, not {t0} and {t1}."
        )


def _adaptive(field, y0, solver, t0, t1):
    y1, counts = solve_adaptive(field, y0, solver, t0, t1)
    return Solution(y1, _stats(*counts))


def _scan(field, y0, solver, t0, t1):
    # Diffrax's loop costs half as much again at a known number of steps, since it
    # must be ready for steps that are rejected; this one is what a user would write.
    shares = solver.shares
    times = jnp.asarray(t0 + (t1 - t0) * shares[:-1], y0.dtype)
    lengths = jnp.asarray((t1 - t0) * np.diff(shares), y0.dtype)
    steps = len(shares) - 1
    evaluations = steps * solver.stages
    form = field.inner_form()
    if form is not None and form.pays(evaluations, y0.shape[-1]):
        y1 = solve_inside(form, y0, tableau(solver.name), times, lengths)
    else:

        def body(y, step_):
            t, h = step_
            return step(field, t, h, y, solver), None

        y1, _ = jax.lax.scan(body, y0, (times, lengths))
    return Solution(y1, _stats(steps, steps, 0, evaluations, 0))


def save_adaptive(
    field: AbstractVectorField,
    y0: Float[Array, "*state"],
    solver: Solver,
    t0: float,
    t1: float,
    saveat: diffrax.SaveAt,
) -> diffrax.Solution:
    """An adaptive solver's own solve, with something saved on the way."""
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver.diffrax(),
        t0,
        t1,
        first_step(field, y0, solver, t0),
        y0,
        stepsize_controller=controller(solver, y0.dtype),
        max_steps=solver.max_steps,
        saveat=saveat,
    )


def _diffrax(field, y0, solver, t0, t1):
    method = solver.diffrax()
    if solver.adaptive:
        control = controller(solver, y0.dtype)
        dt0, max_steps = first_step(field, y0, solver, t0), solver.max_steps
    elif solver.adjoint == "backsolve":
        # The way back runs over the same steps in the other direction, which times
        # given one by one cannot; rounding may add one step of almost no length.
        control = diffrax.ConstantStepSize()
        dt0, max_steps = (t1 - t0) / solver.steps, solver.steps + 1
    else:
        control = diffrax.StepTo(t0 + (t1 - t0) * solver.shares)
        dt0, max_steps = None, solver.steps
    adjoint = {
        # One checkpoint a step: nothing is computed twice.
        "direct": lambda: diffrax.RecursiveCheckpointAdjoint(checkpoints=max_steps),
        "checkpointed": diffrax.RecursiveCheckpointAdjoint,
        "backsolve": diffrax.BacksolveAdjoint,
    }[solver.adjoint]()
    sol = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        method,
        t0,
        t1,
        dt0,
        y0,
        stepsize_controller=control,
        max_steps=max_steps,
        adjoint=adjoint,
        throw=False,
    )
    y1 = sol.ys[-1]  # pyright: ignore[reportOptionalSubscript]
    failed = (sol.result != diffrax.RESULTS.successful).astype(jnp.int32)
    taken = sol.stats["num_steps"]
    nfe = evaluations(solver, taken)
    accepted, rejected = (sol.stats[f"num_{k}_steps"] for k in ("accepted", "rejected"))
    return Solution(y1, _stats(taken, accepted, rejected, nfe, failed))


def _stats(num_steps, accepted, rejected, nfe, failed):
    return {
        "num_steps": jnp.asarray(num_steps),
        "num_accepted_steps": jnp.asarray(accepted),
        "num_rejected_steps": jnp.asarray(rejected),
        "nfe": jnp.asarray(nfe),
        "num_failed": jnp.asarray(failed),
    }
