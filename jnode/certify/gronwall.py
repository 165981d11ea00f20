"""How far two trajectories of the ideal flow may part."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jnode._rounding import unit_roundoff
from jnode.certify.amplification import bounded
from jnode.certify.precision import certifying
from jnode.constraints import measured
from jnode.fields import AbstractVectorField
from jnode.fields.piecewise import jumps, segment


def gronwall(field: AbstractVectorField, times: ArrayLike) -> Float[Array, " times"]:
    r"""Gronwall's envelope $e^{\int L}$ of $\|y(t) - z(t)\| / \|y(t_0) - z(t_0)\|$.

    $L$ may change with time: each segment of a field that jumps counts for as long as
    it lasts. It speaks of the exact flow; `amplification` speaks of a numerical solve.

    **Arguments:** the field, and a vector of times, the first of which is $t_0$:
    increasing, or decreasing for a solve backward, whose field is $-f$.

    **Raises:** `ValueError` for times that turn back; `TypeError` for times in half
    precision, or a field without bounds.
    """
    return jnp.exp(_integral(field, times, lambda bounds: bounds.lipschitz))


def log_norm_envelope(
    field: AbstractVectorField, times: ArrayLike
) -> Float[Array, " times"]:
    r"""The sharper envelope $e^{\int \mu_2}$ from the logarithmic norm.

    It speaks of the exact flow (Dahlquist 1958; Söderlind, BIT 2006). Arguments and
    errors as of `gronwall`.
    """
    return jnp.exp(_integral(field, times, lambda bounds: bounds.log_norm[1]))


@certifying
def _integral(field, times, bound):
    times = jnp.asarray(times)
    if not jnp.issubdtype(times.dtype, jnp.floating):
        times = times.astype(float)
    unit_roundoff(times.dtype)  # refuses half precision
    if not isinstance(times, jax.core.Tracer):
        steps = np.diff(np.asarray(times))
        if not (np.all(steps >= 0) or np.all(steps <= 0)):
            raise ValueError(
                f"times must increase or decrease throughout, not {times.tolist()}."
            )
    field = measured(bounded(field))
    edges = (-jnp.inf, *jumps(field), jnp.inf)
    finite = _finite(edges)
    total = size = jnp.zeros_like(times)
    for k in range(len(edges) - 1):
        bounds = segment(field, k, finite).bounds()
        forward, backward = bound(bounds), bound(-bounds)
        # How long the solve from times[0] has been in this segment.
        start, now = (jnp.clip(t, *edges[k : k + 2]) for t in (times[:1], times))
        spent = now - start
        rate = jnp.where(spent < 0, backward, forward).astype(times.dtype)
        grown = jnp.where(spent == 0, 0, rate) * jnp.abs(spent)
        total, size = total + grown, size + jnp.abs(grown)
    # Of terms of both signs: the allowance is relative to their sizes.
    return total + 1e-5 * jnp.where(jnp.isfinite(size), size, 0)


def _finite(edges):
    """The same segments with finite ends."""
    if len(edges) == 2:
        return (0.0, 1.0)
    return (edges[1] - 1, *edges[1:-1], edges[-2] + 1)
