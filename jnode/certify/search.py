"""Empirical lower bounds: how much a map was seen to stretch. They certify nothing."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.certify.accuracy import refusal
from jnode.fields import AbstractVectorField

if TYPE_CHECKING:
    from jnode.models import ODEClassifier


@eqx.filter_jit
def lipschitz_lower_bound(
    function: Callable[[Array], Array],
    start: Float[Array, "*state"],
    *,
    key: PRNGKeyArray,
    steps: int = 60,
    rate: float = 0.1,
) -> Float[Array, ""]:
    r"""The largest $\|f(y) - f(z)\| / \|y - z\|$ that a gradient search finds.

    Both the point and the difference climb the logarithm of the stretch. An empirical
    *lower* bound on the Lipschitz constant: next to a certified upper bound it tells
    how tight that one is, and one that exceeded it would refute it.

    **Arguments:** a function of one state; where the search starts; the key of the
    first difference; how many steps; and their size, relative to the difference and,
    for the point, to 1. `jax.vmap` searches from many points.
    """
    tiny = jnp.asarray(jnp.finfo(start.dtype).tiny * 1e6, start.dtype)

    def size(x):
        # The smallest addend keeps the derivative finite where nothing moves.
        return jnp.sqrt(jnp.sum(x**2) + tiny)

    def log_ratio(pair):
        y, d = pair
        z = y + d  # rounded, so that z - y is not quite d
        return jnp.log(size(function(z) - function(y))) - jnp.log(size(z - y))

    def body(_, carry):
        (y, d), best = carry
        value, (gy, gd) = jax.value_and_grad(log_ratio)((y, d))
        y = y + rate * gy / size(gy)
        d = d + rate * size(d) * gd / size(gd)
        # A difference that shrank would end in the rounding of the function's values.
        d = d * jnp.maximum(1.0, least_size / size(d))
        return (y, d), jnp.maximum(best, value)

    d = 1e-2 * jr.normal(key, start.shape, start.dtype)
    least_size = size(d)
    least = jnp.asarray(-jnp.inf, start.dtype)
    _, best = jax.lax.fori_loop(0, steps, body, ((start, d), least))
    return jnp.exp(best)


@eqx.filter_jit
def estimate_lipschitz(
    field: AbstractVectorField,
    states: Float[Array, " n *state"],
    *,
    key: PRNGKeyArray,
    t: float = 0.0,
    iterations: int = 30,
) -> Float[Array, ""]:
    r"""An *estimate* of a field's Lipschitz constant: the largest $\|J(y_i)\|_2$.

    By power iteration on $J^\top J$ at the given states. For fields of which nothing is
    certified (`FreeField`): it is a lower bound up to convergence, so it may serve to
    compare or to choose a step, never to certify.

    **Arguments:** the field, some states, a key, the time, and how many iterations.
    """
    field = field.bake()

    def one(y, key):
        f = lambda y: field(t, y)  # noqa: E731
        _, pull = jax.vjp(f, y)

        def body(_, v):
            v = pull(jax.jvp(f, (y,), (v,))[1])[0]
            return v / jnp.maximum(jnp.sqrt(jnp.sum(v**2)), 1e-30)

        v = jr.normal(key, y.shape, y.dtype)
        v = jax.lax.fori_loop(0, iterations, body, v)
        # A Jacobian of zeros leaves nothing of the vector.
        image = jax.jvp(f, (y,), (v,))[1]
        return jnp.sqrt(jnp.sum(image**2) / jnp.maximum(jnp.sum(v**2), 1e-30))

    return jnp.max(jax.vmap(one)(states, jr.split(key, len(states))))


def tightness(
    model: "ODEClassifier",
    images: Float[np.ndarray, "n height width channels"],
    *,
    seed: int,
) -> dict[str, float | None]:
    """From pixels to features: the certified constant, and what a search found.

    **Arguments:** the model; images, of which the first 16 start the search; its seed.

    **Returns:** `certified_upper_bound`, `empirical_lower_bound` and their `ratio`;
    `None` for what needs a certificate where there is none, and for an adaptive
    solver, whose map jumps, so that no constant bounds it.
    """
    if model.solver.adaptive:
        names = ("certified_upper_bound", "empirical_lower_bound", "ratio")
        return dict.fromkeys(names)
    starts = jnp.asarray(images[:16], jnp.float32)
    keys = jr.split(jr.key(seed), len(starts))

    @eqx.filter_jit
    def search(model, starts, keys):
        one = lambda x, key: lipschitz_lower_bound(  # noqa: E731
            model.embed, x, key=key, steps=100
        )
        return jnp.max(jax.vmap(one)(starts, keys))

    found = float(search(model.bake(), starts, keys))
    proven = refusal(model) is None
    bound = float(model.lipschitz()) if proven else None
    return {
        "certified_upper_bound": bound,
        "empirical_lower_bound": found,
        "ratio": None if bound is None else bound / found,
    }
