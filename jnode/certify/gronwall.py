"""How far two trajectories of the ideal flow may part."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.fields import AbstractVectorField


def gronwall(
    field: AbstractVectorField, times: Float[Array, " times"]
) -> Float[Array, " times"]:
    r"""Gronwall's envelope $e^{L(t - t_0)}$ of $\|y(t) - z(t)\| / \|y(t_0) - z(t_0)\|$.

    It speaks of the exact flow; `amplification` speaks of a numerical solve.

    **Arguments:** the field, and increasing times, the first of which is $t_0$.
    """
    return jnp.exp(field.lipschitz() * (times - times[:1]))


def log_norm_envelope(
    field: AbstractVectorField, times: Float[Array, " times"]
) -> Float[Array, " times"]:
    r"""The sharper envelope $e^{\mu_2(t - t_0)}$ from the logarithmic norm.

    It speaks of the exact flow (Dahlquist 1958; Söderlind, BIT 2006). Arguments as in
    `gronwall`.
    """
    return jnp.exp(field.log_norm() * (times - times[:1]))
