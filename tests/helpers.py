"""What several tests need."""

import jax
import jax.numpy as jnp
import numpy as np

import jnode


def dense_matrix(map_, shape):
    """A linear map on states of this shape, materialised on the identity basis."""
    n = int(np.prod(shape))
    basis = jnp.eye(n).reshape(n, *shape)
    return np.asarray(jax.vmap(map_)(basis).reshape(n, -1).T, np.float64)


def singular_values(map_, shape):
    """By dense SVD in float64."""
    return np.linalg.svd(dense_matrix(map_, shape), compute_uv=False)


def small_model(key, field="gradient_flow", solver=None, **kwargs):
    """An 8x8 grey image classifier with 4 classes that compiles in a second."""
    default = jnode.Solver("euler" if field == "gradient_flow" else "rk4", steps=2)
    config = jnode.ModelConfig(field=field, features=4, patch=2, **kwargs)
    return jnode.build(
        config, solver or default, image_shape=(8, 8, 1), classes=4, key=key
    )


def strongest_stretch(f, y0, key, *, steps=60, rate=0.1):
    """The largest stretch |f(y) - f(z)| / |y - z| that a gradient search finds.

    An empirical lower bound on the Lipschitz constant of `f`.
    """
    keys = jax.random.split(key, 2)
    y = y0
    d = 1e-2 * jax.random.normal(keys[0], y0.shape, y0.dtype)

    def log_stretch(pair):
        y, d = pair
        top = jnp.linalg.norm((f(y + d) - f(y)).ravel())
        return jnp.log(top) - jnp.log(jnp.linalg.norm(d.ravel()))

    def body(_, carry):
        pair, best = carry
        value, (gy, gd) = jax.value_and_grad(log_stretch)(pair)
        y, d = pair
        unit = lambda g: g / (jnp.linalg.norm(g.ravel()) + 1e-30)
        length = jnp.linalg.norm(d.ravel())
        pair = (y + rate * unit(gy), d + rate * length * unit(gd))
        return pair, jnp.maximum(best, value)

    _, best = jax.lax.fori_loop(
        0, steps, body, ((y, d), jnp.asarray(-jnp.inf, y.dtype))
    )
    return float(jnp.exp(best))
