"""Fixed steps of a field's inner units (see `jnode.fields.base.TwoLayer`)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.fields.base import TwoLayer, add_bias
from jnode.solvers.tableaus import Rows


def combine(h, weights, ks, y):
    """The weighted sum of stages, times the step; zero weights cost nothing."""
    terms = [
        (h * w).astype(y.dtype) * k for w, k in zip(weights, ks, strict=True) if w != 0
    ]
    return sum(terms, start=jnp.zeros_like(y))


def solve_inside(
    form: TwoLayer,
    y0: Float[Array, "*state"],
    method: Rows,
    times: Float[Array, " steps"],
    lengths: Float[Array, " steps"],
) -> Float[Array, "*state"]:
    """The state after these steps, by way of the inner units.

    They carry $u = Wy$ and the sum $q$ of weighted activations, from which the state
    follows at the end as $y_0 + L V q$ and the drift.
    """
    a, b, c = method
    dtype, loop = y0.dtype, form.loop()
    assert loop is not None, "a form that pays has one"
    drift = _along(form.drift, y0)
    push = None if drift is None else form.enter(drift)
    clocks = None if form.clocks is None else _along(form.clocks[1], y0)
    shove = None if clocks is None else form.enter(clocks)

    def act(t, u):
        bias = form.bias
        if form.clocks is not None:
            bias = bias + t * form.clocks[0]
        return form.activation(add_bias(u, bias))

    def speed(t, active):
        k = form.scale * loop(active)
        if push is not None:
            k = k + push
        return k if shove is None else k + t * shove

    def stages(t, h, u):
        """Each stage's activation, and the speeds of all but the last."""
        actives, ks = [], []
        for i in range(len(b)):
            if i:
                ks.append(speed(t + c[i - 1] * h, actives[-1]))
            actives.append(act(t + c[i] * h, u + combine(h, a[i][:i], ks, u)))
        return actives, ks

    def step(carry, this):
        u, q = carry
        t, h = this
        actives, ks = stages(t, h, u)
        ks.append(speed(t + c[-1] * h, actives[-1]))
        return (u + combine(h, b, ks, u), q + combine(h, b, actives, q)), None

    u = form.enter(y0)
    q = jnp.zeros_like(u)
    if len(times) > 1:
        (u, q), _ = jax.lax.scan(step, (u, q), (times[:-1], lengths[:-1]))
    # Where the inner units end, nobody asks.
    actives, _ = stages(times[-1], lengths[-1], u)
    q = q + combine(lengths[-1], b, actives, q)
    y = y0 + form.scale * form.leave(q)
    if drift is not None:
        y = y + jnp.sum(lengths) * drift
    if clocks is not None:
        middles = sum(w * (times + s * lengths) for w, s in zip(b, c, strict=True))
        y = y + jnp.sum(lengths * jnp.asarray(middles, dtype)) * clocks
    return y


def _along(channels, y):
    """A vector of channels at each position, with room for a batch."""
    if channels is None:
        return None
    shape = (*y.shape[:2], *(1,) * (y.ndim - 3)) if y.ndim > 2 else (1,) * (y.ndim - 1)
    return jnp.broadcast_to(channels.astype(y.dtype), (*shape, y.shape[-1]))
