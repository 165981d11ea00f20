"""Adaptive steps for a batch of states, each sample's chosen by itself.

Diffrax chooses the steps (its controller, sample by sample, on its method's tableau);
only the loop is for the whole batch, so that a step is a few large matrix products, and
the gradient with respect to the field's weights is summed as it goes, where `jax.vmap`
of a solve carries one gradient a sample. The gradient is that of Diffrax's direct
adjoint: of the steps that were accepted, their lengths held.
"""

import dataclasses
from typing import Any

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jnode.fields import AbstractVectorField
from jnode.solvers.inside import combine
from jnode.solvers.solver import Solver
from jnode.solvers.tableaus import embedded_pair

# How many states the way back keeps. Where more steps were taken, some are repeated.
CHECKPOINTS = 16
# A step that would end so few numbers before the end ends there, as in Diffrax.
CLOSE = 100


def solve_adaptive(
    field: AbstractVectorField,
    y0: Float[Array, "*positions batch channels"],
    solver: Solver,
    t0: Any,
    t1: Any,
) -> tuple[Float[Array, "*positions batch channels"], tuple[Int[Array, " batch"], ...]]:
    """Integrates a time-invariant field for a batch of states.

    **Returns:** the states at `t1`, and of each sample: how many steps it took, how
    many of them were accepted and rejected, the evaluations, and whether `max_steps`
    ended it before its time, 0 or 1.
    """
    tolerances = jnp.stack([jnp.asarray(x, y0.dtype) for x in solver.tolerances])
    solver = dataclasses.replace(solver, rtol=None, atol=None)
    y1, (taken, accepted, failed) = _solve((field, y0), tolerances, solver, t0, t1)
    nfe = evaluations(solver, taken)
    return y1, (taken, accepted, taken - accepted, nfe, failed)


def controller(solver: Solver, dtype: Any) -> diffrax.PIDController:
    """What chooses an adaptive solver's steps, for states of this type."""
    rtol, atol = (jnp.asarray(x, dtype) for x in solver.tolerances)
    return diffrax.PIDController(rtol=rtol, atol=atol)


def first_step(
    field: AbstractVectorField, y0: Float[Array, "*state"], solver: Solver, t0: Any
) -> Float[Array, ""]:
    """The length of the first step, by two evaluations (Hairer, Norsett & Wanner).

    Asked of the controller here, since inside `diffeqsolve` (0.7.2) it does not know
    its own terms, and takes 0.01 whatever the field.
    """
    term, method = diffrax.ODETerm(field), solver.diffrax()
    order = method.error_order(term)
    t0 = jnp.asarray(t0, y0.dtype)
    # The state is cut off before, as the step is held when gradients are taken.
    arrays, static = eqx.partition((term, y0), eqx.is_array)
    term, y0 = eqx.combine(jax.lax.stop_gradient(arrays), static)
    control = controller(solver, y0.dtype)
    end, _ = control.init(term, t0, t0, y0, None, None, method.func, order)
    return end - t0


def evaluations(solver: Solver, steps: Int[Array, "..."]) -> Int[Array, "..."]:
    """The evaluations of the field in so many steps, rejected ones included."""
    if solver.name == "euler":
        return steps
    t = solver.diffrax().tableau  # pyright: ignore[reportAttributeAccessIssue]
    nfe = steps * (t.num_stages - 1) + 1 if t.fsal else steps * t.num_stages
    return nfe + 2 if solver.adaptive else nfe  # two more choose the first step


@eqx.filter_custom_vjp
def _solve(differentiable, tolerances, solver, t0, t1):
    y1, counts, _ = _forward(*differentiable, solver.at(tolerances), t0, t1)
    return y1, counts


@_solve.def_fwd
def _solve_fwd(perturbed, differentiable, tolerances, solver, t0, t1):
    del perturbed
    y1, counts, lengths = _forward(*differentiable, solver.at(tolerances), t0, t1)
    return (y1, counts), (counts, lengths)


@_solve.def_bwd
def _solve_bwd(
    residuals, cotangent, perturbed, differentiable, tolerances, solver, t0, t1
):
    del perturbed, tolerances, t1
    (_, accepted, _), lengths = residuals
    start = jnp.asarray(t0, lengths.dtype)

    def replay(differentiable):
        field, y0 = differentiable

        def going(carry):
            return carry[0] < jnp.max(accepted)

        def body(carry):
            i, y = carry
            h = jnp.where(i < accepted, lengths[i], 0)
            return i + 1, _step(field, start, h, y, None, solver)[0]

        first = (jnp.zeros((), accepted.dtype), y0)
        checkpoints = min(CHECKPOINTS, solver.max_steps)
        return eqxi.while_loop(
            going,
            body,
            first,
            max_steps=solver.max_steps,
            kind="checkpointed",
            checkpoints=checkpoints,
        )[1]

    _, pull = eqx.filter_vjp(replay, differentiable)
    return pull(cotangent[0])[0]


def _step(field, t, h, y, k, solver):
    """The state, the error and the last stage of a step of each sample.

    The field does not move with time, so `t` may be any.
    """
    a, b, error = (x.tolist() for x in embedded_pair(solver.name))
    h = _along(h, y)
    ks = [field(t, y, None) if k is None else k]
    for i in range(1, len(b)):
        ks.append(field(t, y + combine(h, a[i][:i], ks, y), None))
    y1 = y + combine(h, b, ks, y)
    return y1, combine(h, error, ks, y), ks[-1]


def _along(samples, y):
    """Numbers of each sample, ready to meet the states."""
    return samples.reshape((1,) * (y.ndim - 2) + (len(samples), 1))


def _forward(field, y0, solver, t0, t1):
    method, batch, dtype = solver.diffrax(), y0.shape[-2], y0.dtype
    term = diffrax.ODETerm(field)
    control, order = controller(solver, dtype), method.error_order(term)
    t0, t1 = jnp.asarray(t0, dtype), jnp.asarray(t1, dtype)
    floor = t1
    for _ in range(CLOSE):
        floor = eqxi.prevbefore(floor)
    axis = y0.ndim - 2

    def begin(y):
        # A length that is given, the controller does not choose.
        length = first_step(field, y, solver, t0)
        return control.init(None, t0, t1, y, length, None, None, order)  # pyright: ignore

    end, memory = jax.vmap(begin, in_axes=axis)(y0)
    adapt = jax.vmap(
        lambda t, end, y, y1, error, memory: control.adapt_step_size(
            t, end, y, y1, None, error, order, memory
        ),
        in_axes=(0, 0, axis, axis, axis, 0),
    )
    fsal = method.tableau.fsal  # pyright: ignore[reportAttributeAccessIssue]

    def going(carry):
        count, done = carry[0], carry[1]
        return (count < solver.max_steps) & ~jnp.all(done)

    def body(carry):
        count, done, t, end, memory, y, k, taken, accepted, lengths = carry
        y1, error, last = _step(field, t0, end - t, y, k, solver)
        keep, start, ahead, _, after, _ = adapt(t, end, y, y1, error, memory)
        new = keep & ~done
        rows = jnp.arange(batch)
        # Samples that are done write past the end, which is dropped.
        slot = jnp.where(new, accepted, solver.max_steps)
        lengths = lengths.at[slot, rows].set(end - t, mode="drop")
        y = jnp.where(_along(new, y), y1, y)
        k = jnp.where(_along(new, y), last, k) if fsal else None
        taken = taken + (~done).astype(taken.dtype)
        accepted = accepted + new.astype(accepted.dtype)
        t = jnp.where(done, t, jnp.minimum(start, t1))
        halfway = jnp.where(keep, t1, t + 0.5 * (t1 - t))
        ahead = jnp.where(ahead > floor, halfway, ahead)
        end = jnp.where(done, end, ahead)
        memory = jax.tree.map(lambda a, b: jnp.where(done, a, b), memory, after)
        done = done | (t >= t1)
        return count + 1, done, t, end, memory, y, k, taken, accepted, lengths

    times = jnp.broadcast_to(t0, batch)
    end = jnp.minimum(end, t1)
    zeros = jnp.zeros(batch, jnp.int32)
    buffer = jnp.zeros((solver.max_steps, batch), dtype)
    k = field(t0, y0, None) if fsal else None
    none = jnp.zeros(batch, bool)
    first = (0, none, times, end, memory, y0, k, zeros, zeros, buffer)
    carry = jax.lax.while_loop(going, body, first)
    _, done, _, _, _, y1, _, taken, accepted, lengths = carry
    return y1, (taken, accepted, (~done).astype(jnp.int32)), lengths
