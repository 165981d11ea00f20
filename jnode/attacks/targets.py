"""Restarts and targets of an attack: which class each aims at, and one by one."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from jnode.attacks.base import Labels, Logits


def likely(clean: Logits, rank: Int[Array, ""]) -> Labels:
    """The class of the largest clean logit after the predicted one, at `rank` 0.

    With fewer classes than ranks they come round again.
    """
    order = jnp.argsort(-clean, axis=1)
    return jnp.take(order, 1 + rank % (clean.shape[1] - 1), axis=1)


def one_by_one(attack: Any) -> tuple[Any, ...]:
    """An attack of several restarts as several of one, each knowing its `first`."""
    single = type(attack)(
        float(attack.epsilon), norm=attack.norm, steps=int(attack.steps), restarts=1
    )
    if not hasattr(attack, "first"):
        return (single,) * attack.restarts
    return tuple(
        eqx.tree_at(lambda a: a.first, single, attack.first + i)
        for i in range(attack.restarts)
    )
