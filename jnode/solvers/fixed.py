"""Fixed steps of explicit Runge-Kutta methods: a scan that JAX differentiates.

At a known number of steps Diffrax's loop costs half as much again, since it must allow
for rejected steps; this one is what a user would write by hand. A field that is cheaper
in its hidden space is solved there (see `jnode.fields.base.TwoLayer`).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jnode.constraints import plain
from jnode.fields.base import (
    AbstractVectorField,
    TwoLayer,
    add_bias,
    as_two_layer,
    of_shape,
)
from jnode.solvers.schedule import Schedule
from jnode.solvers.solution import compiled, statistics
from jnode.solvers.spectral import SpectralState, spectral_field
from jnode.solvers.tableaus import Rows, stage_time


class RightHandSide(eqx.Module):
    """$f(t, y)$ for a state that is one array: with `args` bound, and cast to its
    dtype."""

    field: Any
    args: PyTree = None

    def __call__(self, t: Any, y: Array, args: Any = None) -> Array:
        del args
        value = self.field(t, y, self.args)
        if not eqx.is_array_like(value):
            raise TypeError(
                "field must return an array for a state that is one, not "
                f"{type(value).__name__}."
            )
        value = jnp.asarray(value)
        if value.dtype != y.dtype:
            value = value.astype(y.dtype)
        sizes = zip(value.shape[::-1], y.shape[::-1], strict=False)
        wrong = value.ndim > y.ndim or any(s not in (1, full) for s, full in sizes)
        if wrong or isinstance(self.field, AbstractVectorField):
            return of_shape(value, y)
        return jnp.broadcast_to(value, y.shape)


def combine(h, weights, ks, y):
    """The step times the weighted sum of stages, without those of weight zero."""
    terms = [
        (h * w).astype(y.dtype) * k for w, k in zip(weights, ks, strict=True) if w != 0
    ]
    return sum(terms, start=jnp.zeros_like(y))


def step(
    field: Any,
    times: tuple[Any, Any],
    h: Any,
    y: Float[Array, "*state"],
    method: Rows,
) -> Float[Array, "*state"]:
    """One step of an explicit method (`jnode.solvers.tableaus.rows`) between two times.

    Its length `h` is given too, since the difference of rounded times is less exact.
    """
    a, b, c = method
    ks = []
    for i in range(len(b)):
        inside = y + combine(h, a[i][:i], ks, y)
        ks.append(field(stage_time(c[i], *times), inside, None))
    return y + combine(h, b, ks, y)


@compiled
def solve_fixed(
    tree: tuple[Any, PyTree],
    y0: Float[Array, "*state"],
    schedule: Schedule,
    method: Rows,
) -> tuple[Float[Array, "*state"], dict[str, Any], Array, Array]:
    """The state after all steps, the statistics, and the times $t_0$ and $t_1$.

    `tree` is the field with its arguments.
    """

    tree = plain(tree)
    first = as_two_layer(schedule.at(tree, 0)[0])
    in_hidden = first is not None and any(
        first.hidden_is_cheaper(part.steps * len(method[1]), y0)
        for part in schedule.parts
    )
    spectral = not in_hidden and spectral_field(first, y0) is not None

    def segment(tree, y, part):
        field, args = tree
        form = as_two_layer(field)
        among_frequencies = spectral_field(form, y0) if spectral else None
        if among_frequencies is not None:
            return _scan(among_frequencies, y, part, method, keep=False)
        evaluations = part.steps * len(method[1])
        if form is not None and form.hidden_is_cheaper(evaluations, y0):
            return _solve_hidden(form, y, method, part.starts[0], part.lengths[0]), None
        return _scan(RightHandSide(field, args), y, part, method, keep=False)

    if spectral:
        states = SpectralState(y0.shape)
        y = states.decode(schedule.over(tree, states.encode(y0), segment)[0])
    else:
        y, _ = schedule.over(tree, y0, segment)
    steps = schedule.steps
    stats = statistics(steps, steps, 0, steps * len(method[1]), 0)
    return y, stats, schedule.t0, schedule.t1


@compiled
def walk_fixed(
    tree: tuple[Any, PyTree],
    y0: Float[Array, "*state"],
    schedule: Schedule,
    method: Rows,
) -> Float[Array, " times *state"]:
    """The first state, and the states after each step."""

    def segment(tree, y, part):
        return _scan(RightHandSide(*tree), y, part, method, keep=True)

    return jnp.concatenate([y0[None], schedule.over(plain(tree), y0, segment)[1]])


def _scan(side, y, part, method, *, keep):
    def body(y, this):
        after = step(side, this[:2], this[2], y, method)
        return after, after if keep else None

    times = part.times
    return jax.lax.scan(body, y, (times[:-1], times[1:], part.lengths[0]))


def _solve_hidden(form: TwoLayer, y0, method: Rows, times, lengths):
    """The state after these steps, computed in the hidden space.

    The loop carries $u = Wy$ and the sum $q$ of weighted activations; the final state
    is $y_0 + L V q$ plus the integral of the drift.
    """
    _, b, c = method
    drift = _along(form.drift, y0)
    time_coefficients = (
        None
        if form.time_coefficients is None
        else _along(form.time_coefficients[1], y0)
    )
    hidden_drift = [
        None if x is None else form.w_in(x) for x in (drift, time_coefficients)
    ]
    loop = form.w_hidden()
    assert loop is not None, "a form that pays has one"

    def speed(t, active):
        """The time derivative of the hidden state."""
        constant, growing = hidden_drift
        k = form.scale.astype(active.dtype) * loop(active)
        if constant is not None:
            k = k + constant
        return k if growing is None else k + t * growing

    def step(carry, this):
        u, q = carry
        t, h = this
        actives, ks = _stages(form, speed, method, t, h, u)
        ks.append(speed(t + c[-1] * h, actives[-1]))
        return (u + combine(h, b, ks, u), q + combine(h, b, actives, q)), None

    u = form.w_in(y0)
    q = jnp.zeros_like(u)
    if len(times) > 1:
        (u, q), _ = jax.lax.scan(step, (u, q), (times[:-1], lengths[:-1]))
    # The final hidden state is not needed.
    actives, _ = _stages(form, speed, method, times[-1], lengths[-1], u)
    q = q + combine(lengths[-1], b, actives, q)
    y = y0 + form.scale.astype(q.dtype) * form.w_out(q)
    if drift is not None:
        y = y + jnp.sum(lengths) * drift
    if time_coefficients is not None:
        middles = sum(w * (times + s * lengths) for w, s in zip(b, c, strict=True))
        y = y + jnp.sum(lengths * jnp.asarray(middles, y0.dtype)) * time_coefficients
    return y


def _stages(form, speed, method, t, h, u):
    """Each stage's activation, and the speeds of all but the last."""
    a, b, c = method
    actives, ks = [], []
    for i in range(len(b)):
        if i:
            ks.append(speed(t + c[i - 1] * h, actives[-1]))
        bias = form.bias
        if form.time_coefficients is not None:
            bias = bias + (t + c[i] * h) * form.time_coefficients[0]
        inner = add_bias(u + combine(h, a[i][:i], ks, u), bias)
        actives.append(form.activation(inner))
    return actives, ks


def _along(channels, y):
    """A vector of channels, broadcast to each position and a batch axis."""
    if channels is None:
        return None
    shape = (*y.shape[:2], *(1,) * (y.ndim - 3)) if y.ndim > 2 else (1,) * (y.ndim - 1)
    return jnp.broadcast_to(channels.astype(y.dtype), (*shape, y.shape[-1]))
