"""Activations with Lipschitz constant 1, by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def maxmin(x: Float[Array, "*grid channels"]) -> Float[Array, "*grid channels"]:
    """Sorts neighbouring pairs of channels (Anil, Lucas & Grosse, ICML 2019).

    Gradient-norm preserving. **Raises** `ValueError` for an odd number of channels.
    """
    if x.shape[-1] % 2:
        raise ValueError(
            f"maxmin needs an even number of channels, not {x.shape[-1]}: "
            "add one or choose another activation."
        )
    pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    return jnp.stack([jnp.maximum(a, b), jnp.minimum(a, b)], axis=-1).reshape(x.shape)


ACTIVATIONS: dict[str, Activation] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "maxmin": maxmin,
}
"""Each 1-Lipschitz in L2; the elementwise ones are monotone besides."""

MONOTONE = ("relu", "tanh")
"""Those that are the gradient of a convex function: $\\sigma' \\in [0, 1]$."""


def get_activation(name: str) -> Activation:
    """The activation of this name; `ValueError` with the known names for another."""
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation must be one of {known}, not {name!r}.")
    return ACTIVATIONS[name]
