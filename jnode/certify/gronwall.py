"""How far two trajectories of the ideal flow may part."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.fields import AbstractVectorField, PiecewiseField


def gronwall(
    field: AbstractVectorField, times: Float[Array, " times"]
) -> Float[Array, " times"]:
    r"""Gronwall's envelope $e^{\int L}$ of $\|y(t) - z(t)\| / \|y(t_0) - z(t_0)\|$.

    $L$ may change with time: of a `PiecewiseField` each piece counts for as long as it
    rules. It speaks of the exact flow; `amplification` speaks of a numerical solve.

    **Arguments:** the field, and increasing times, the first of which is $t_0$.
    """
    return jnp.exp(_integral(field, "lipschitz", times))


def log_norm_envelope(
    field: AbstractVectorField, times: Float[Array, " times"]
) -> Float[Array, " times"]:
    r"""The sharper envelope $e^{\int \mu_2}$ from the logarithmic norm.

    It speaks of the exact flow (Dahlquist 1958; Söderlind, BIT 2006). Arguments as in
    `gronwall`.
    """
    return jnp.exp(_integral(field, "log_norm", times))


def _integral(field, bound, times):
    if not isinstance(field, PiecewiseField):
        return getattr(field, bound)() * (times - times[:1])
    values = field.each(bound)
    ends = jnp.asarray(field.times(), times.dtype)
    # The first and the last piece rule beyond the interval's ends.
    starts = ends[:-1].at[0].set(-jnp.inf)
    stops = ends[1:].at[-1].set(jnp.inf)
    begin = jnp.maximum(starts, times[0])[None]
    end = jnp.minimum(stops[None], times[:, None])
    return jnp.sum(values[None] * jnp.maximum(end - begin, 0), axis=1)
