"""Empirical lower bounds on Lipschitz constants, which certify nothing."""

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
from jnode.linear.conv import forward_mode

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

    It maximises the logarithm of this ratio over the point and the difference. The
    result is an empirical *lower* bound on the Lipschitz constant: compared with a
    certified upper bound it shows how tight that one is, and if it were larger it would
    refute it.

    **Arguments:** a function of one state; the state `[*state]` from which the search
    starts; the key of the first difference; the number of steps; and their size,
    relative to the difference and, for the point, to 1. Use `jax.vmap` to search from
    many states.
    """
    tiny = jnp.asarray(jnp.finfo(start.dtype).tiny * 1e6, start.dtype)

    def size(x):
        # The tiny addend keeps the derivative finite at zero.
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
        # Without this, differences would shrink until rounding dominates.
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

    By power iteration on $J^\top J$ at the given states. It is meant for fields without
    certified bounds (`FreeField`): as a lower bound, up to convergence, it may be used
    to compare fields or to choose a step, but never to certify.

    **Arguments:** the field, states `[n, *state]`, a key, the time, and the number of
    iterations.
    """
    field = field.bake()

    def one(y, key):
        f = lambda y: field(t, y)  # noqa: E731
        _, pull = jax.vjp(f, y)

        def body(_, v):
            v = pull(jax.jvp(f, (y,), (v,))[1])[0]
            return v / jnp.maximum(jnp.sqrt(jnp.sum(v**2)), 1e-30)

        v = jr.normal(key, y.shape, y.dtype)
        with forward_mode():
            v = jax.lax.fori_loop(0, iterations, body, v)
            image = jax.jvp(f, (y,), (v,))[1]
        # A Jacobian of zeros makes the vector zero.
        return jnp.sqrt(jnp.sum(image**2) / jnp.maximum(jnp.sum(v**2), 1e-30))

    return jnp.max(jax.vmap(one)(states, jr.split(key, len(states))))


def tightness(
    model: "ODEClassifier",
    images: Float[np.ndarray, "n height width channels"],
    *,
    seed: int,
) -> dict[str, float | None]:
    """The Lipschitz constant from pixels to features: certified, and found by a search.

    **Arguments:** the model; images, of which the first 16 start the search; its seed.

    **Returns:** `certified_upper_bound`, `empirical_lower_bound` and their `ratio`; the
    upper bound and the ratio are `None` without a certificate, and all three for an
    adaptive solver, whose map jumps, so that it has no Lipschitz constant.
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
