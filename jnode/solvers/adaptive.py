"""Adaptive steps for a batch of states, chosen for each sample separately.

A controller of Diffrax or of `jnode.solvers.ladder` chooses the steps of each sample,
with the tableau of the method; only the loop is shared by the whole batch. So a step is
a few large products, and the gradient with respect to the field's weights is summed
during the backward pass, where `jax.vmap` of a solve carries one gradient for each
sample. The gradient is that of Diffrax's direct adjoint: it differentiates the
accepted steps with their lengths held constant. The times $t_0$ and $t_1$ shift the
steps, and affect the length of the last one.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jnode.solvers.fixed import RightHandSide, combine
from jnode.solvers.tableaus import embedded_pair, evaluations, stage_time

# How many states the backward pass stores. With more steps, some are recomputed.
CHECKPOINTS = 16
# A step that would end within this many floating-point numbers of the end is extended
# to it, as in Diffrax.
CLOSE = 100

Sign = int | Float[Array, ""]
"""1 if time runs forwards, -1 if backwards; traced if known only at run time."""


def turned(sign: Sign, x: Any) -> Any:
    """`sign * x`, without a multiplication if the sign is known to be 1."""
    if isinstance(sign, int) and sign == 1:
        return x
    return jnp.asarray(sign, x.dtype) * x


class Together(eqx.Module):
    """A time-invariant field that takes batches, at the times of a batch's states."""

    field: RightHandSide

    def __call__(self, t: Float[Array, " batch"], y: Array) -> Array:
        return self.field(t[0], y)


class Each(eqx.Module):
    """A field of one state, at the times of a batch's states."""

    field: Callable[[Any, Array, Any], Array]

    def __call__(self, t: Float[Array, " batch"], y: Array) -> Array:
        return jax.vmap(self.field, (0, -2, None), -2)(t, y, None)


def each(field: RightHandSide, t: Float[Array, ""], y: Array) -> Each:
    """A field of one state, for a batch `y` with its axis before the last. Arrays that
    the field closes over, and which may be differentiated, become parts of it."""
    one = jax.ShapeDtypeStruct((*y.shape[:-2], y.shape[-1]), y.dtype)
    return Each(eqx.filter_closure_convert(field, t, one, None))


def solve_adaptive(
    field: Together | Each,
    y0: Float[Array, "*positions batch channels"],
    method: diffrax.AbstractSolver,
    control: diffrax.AbstractStepSizeController,
    max_steps: int,
    times: tuple[Float[Array, ""], Float[Array, ""]],
    sign: Sign,
) -> tuple[Float[Array, "*positions batch channels"], tuple[Int[Array, " batch"], ...]]:
    """Integrates a field for a batch of states.

    **Arguments:** the field, the states, the method, its step size controller, the
    largest number of steps, the times $t_0$ and $t_1$, and the sign of $t_1 - t_0$.

    **Returns:** the states at $t_1$, and for each sample: the number of steps, how many
    of them were accepted and rejected, the evaluations, and whether `max_steps` stopped
    it early, 0 or 1.
    """
    differentiable = (field, y0, times)
    held = lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x  # noqa: E731
    control = jax.tree.map(held, control)
    y1, counts = _solve(differentiable, control, method, max_steps, sign)
    taken, accepted, failed = counts
    nfe = evaluations(method, taken)
    if isinstance(control, diffrax.PIDController):
        nfe = nfe + 2  # they choose the first step
    return y1, (taken, accepted, taken - accepted, nfe, failed)


def controller(tolerances: Float[Array, "2"]) -> diffrax.PIDController:
    """The controller of an adaptive solver without a ladder."""
    return diffrax.PIDController(rtol=tolerances[0], atol=tolerances[1])


class Reversed(eqx.Module):
    """$s f(st, y)$ for a sign $s$: the time-reversed field if it is -1."""

    field: Any
    sign: Sign

    def __call__(self, t: Any, y: PyTree[Array], args: Any = None) -> PyTree[Array]:
        rates = self.field(turned(self.sign, t), y, args)
        return jax.tree.map(lambda rate: turned(self.sign, jnp.asarray(rate)), rates)


def first_step(
    field: Any,
    y0: PyTree[Array],
    args: PyTree,
    method: diffrax.AbstractSolver,
    control: diffrax.PIDController,
    t0: Float[Array, ""],
    sign: Sign,
) -> Float[Array, ""]:
    """The length of the first step, positive, by two evaluations (Hairer, Norsett &
    Wanner).

    The controller is called here, since inside `diffeqsolve` (0.7.2) it has no terms,
    and always takes 0.01.
    """
    forward = isinstance(sign, int) and sign == 1
    term = diffrax.ODETerm(field if forward else Reversed(field, sign))
    t0 = turned(sign, t0)
    order = method.error_order(term)
    # The state's gradient is stopped before, as steps are constants for gradients.
    arrays, static = eqx.partition((term, y0, args, t0), eqx.is_array)
    term, y0, args, t0 = eqx.combine(jax.lax.stop_gradient(arrays), static)
    end, _ = control.init(term, t0, t0, y0, None, args, method.func, order)
    return jnp.asarray(end - t0)


@eqx.filter_custom_vjp
def _solve(differentiable, control, method, max_steps, sign):
    y1, counts, _ = _forward(differentiable, control, method, max_steps, sign)
    return y1, counts


@_solve.def_fwd
def _solve_fwd(perturbed, differentiable, control, method, max_steps, sign):
    del perturbed
    y1, counts, steps = _forward(differentiable, control, method, max_steps, sign)
    return (y1, counts), (counts, steps)


@_solve.def_bwd
def _solve_bwd(
    residuals, cotangent, perturbed, differentiable, control, method, max_steps, sign
):
    del control
    (_, accepted, failed), steps = residuals
    clocks = any(jax.tree.leaves(perturbed[2]))

    def replay(differentiable):
        field, y0, (t0, t1) = differentiable
        held = jax.lax.stop_gradient(t0)
        span = turned(sign, t1 - t0)
        # Zeros: how the times move all steps, and the end of the last one of a sample
        # that reached it.
        moved = turned(sign, t0 - held)
        longer = jnp.where(failed > 0, 0, span - jax.lax.stop_gradient(span))

        def going(carry):
            return carry[0] < jnp.max(accepted)

        def body(carry):
            i, y = carry
            # A finished sample waits where its last step began.
            last = jnp.maximum(accepted - 1, 0)
            t, end = steps[:, jnp.minimum(i, last), jnp.arange(len(last))]
            end = jnp.where(i < accepted, end, t)
            if clocks:
                t = t + moved
                end = end + moved + jnp.where(i == last, longer, 0)
            return i + 1, _step(field, t, end, y, None, method, sign)[0]

        first = (jnp.zeros((), accepted.dtype), y0)
        return eqxi.while_loop(
            going,
            body,
            first,
            max_steps=max_steps,
            kind="checkpointed",
            checkpoints=min(CHECKPOINTS, max_steps),
        )[1]

    # A number that JAX differentiates may arrive as a Python float, which Equinox would
    # take for a constant.
    arrays = jax.tree.map(
        lambda x, moves: jnp.asarray(x) if moves else x, differentiable, perturbed
    )
    _, pull = eqx.filter_vjp(replay, arrays)
    return pull(cotangent[0])[0]


def _step(field, t, end, y, k, method, sign):
    """The state, the error and the last stage of a step of each sample, between times
    that run forwards."""
    a, b, c, error = (x.tolist() for x in embedded_pair(method))
    t, end = turned(sign, t), turned(sign, end)
    h = _along(end - t, y)
    ks = [field(t, y) if k is None else k]
    for i in range(1, len(b)):
        inside = y + combine(h, a[i][:i], ks, y)
        ks.append(field(stage_time(c[i], t, end), inside))
    y1 = y + combine(h, b, ks, y)
    # Not a number counts as too large: the step is rejected, and a shorter one tried.
    error = combine(h, error, ks, y)
    return y1, jnp.where(jnp.isnan(error), jnp.inf, error), ks[-1]


def _along(samples, y):
    """One number for each sample, reshaped to broadcast against the states."""
    return samples.reshape((1,) * (y.ndim - 2) + (len(samples), 1))


def _before(t1):
    """The time a few floating-point numbers before the end."""
    for _ in range(CLOSE):
        t1 = eqxi.prevbefore(t1)
    return t1


def _forward(differentiable, control, method, max_steps, sign):
    field, y0, (begin, stop) = differentiable
    batch = y0.shape[-2]
    term = diffrax.ODETerm(field.field)
    order = method.error_order(term)
    t0, t1 = turned(sign, begin), turned(sign, stop)
    floor = _before(t1)
    axis = y0.ndim - 2

    def start(y):
        length = None
        if isinstance(control, diffrax.PIDController):
            # The controller does not choose a length that is given.
            length = first_step(field.field, y, None, method, control, begin, sign)
        return control.init(term, t0, t1, y, length, None, method.func, order)

    end, memory = jax.vmap(start, in_axes=axis)(y0)

    def decide(t, end, y, y1, error, memory):
        inputs = (t, end, y, y1, None, error, order, memory)
        *found, result = control.adapt_step_size(*inputs)
        return *found, diffrax.is_okay(result)

    adapt = jax.vmap(decide, in_axes=(0, 0, axis, axis, axis, 0))
    fsal = method.tableau.fsal  # pyright: ignore[reportAttributeAccessIssue]  # a Runge-Kutta method's

    def going(carry):
        done, taken = carry[:2]
        return jnp.any(~done & (taken < max_steps))

    def body(carry):
        done, taken, accepted, t, end, memory, y, k, steps = carry
        y1, error, last = _step(field, t, end, y, k, method, sign)
        keep, start, ahead, _, after, goes_on = adapt(t, end, y, y1, error, memory)
        new = keep & ~done
        # Finished samples write beyond the end, which is dropped.
        slot = (slice(None), jnp.where(new, accepted, max_steps), jnp.arange(batch))
        steps = steps.at[slot].set(jnp.stack([t, end]), mode="drop")
        y = jnp.where(_along(new, y), y1, y)
        k = jnp.where(_along(new, y), last, k) if fsal else None
        taken = taken + (~done).astype(taken.dtype)
        accepted = accepted + new.astype(accepted.dtype)
        t = jnp.where(done, t, jnp.minimum(start, t1))
        halfway = jnp.where(keep, t1, t + 0.5 * (t1 - t))
        ahead = jnp.where(ahead > floor, halfway, ahead)
        end = jnp.where(done, end, ahead)
        memory = jax.tree.map(lambda a, b: jnp.where(done, a, b), memory, after)
        # A controller that gives up has failed, as Diffrax would say.
        done = done | (t >= t1) | ~goes_on
        return done, taken, accepted, t, end, memory, y, k, steps

    spread = lambda t: jnp.broadcast_to(t, batch)  # noqa: E731
    counts = jnp.zeros((2, batch), jnp.int32)
    steps = jnp.broadcast_to(t0, (2, max_steps, batch)).astype(y0.dtype)
    k = field(spread(begin), y0) if fsal else None
    end = jnp.minimum(end, t1)
    first = (spread(t0 >= t1), *counts, spread(t0), end, memory, y0, k, steps)
    _, taken, accepted, t, _, _, y1, _, steps = jax.lax.while_loop(going, body, first)
    return y1, (taken, accepted, (t < t1).astype(jnp.int32)), steps
