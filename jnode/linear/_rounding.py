r"""Rounding allowances: how far a float32 result may stand from the exact one.

Higham, *Accuracy and Stability of Numerical Algorithms* (2002), section 3: a dot
product of length $n$ errs by at most $\gamma_n |x|^\top |y|$, $\gamma_n = nu/(1-nu)$.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def unit_roundoff(dtype) -> float:
    """$u$: half the spacing of `dtype` at 1."""
    return float(jnp.finfo(dtype).eps) / 2


def gamma(n: int, dtype) -> float:
    r"""$\gamma_n$ of Higham, for sums of `n` products in `dtype`."""
    nu = n * unit_roundoff(dtype)
    return nu / (1 - nu)


def gram_norm_bound(
    q: Float[Array, "batch rows columns"],
) -> Float[Array, ""]:
    r"""A certified upper bound on the largest singular value of (nearly) isometric `q`.

    $\|Q\|^2 \le 1 + \|Q^\top Q - I\|_F$, plus what rounding may hide: an entry of
    the computed $Q^\top Q$ errs by at most $\gamma_n \|q_i\|\|q_j\|$.
    """
    n, m = q.shape[-2:]
    gram = jnp.matmul(q.mT, q, precision="highest")
    # One column of the gram matrix is its diagonal's, so its trace bounds the error.
    trace = jnp.trace(gram, axis1=-2, axis2=-1)
    residual = gram - jnp.eye(m, dtype=q.dtype)[None]
    frobenius = jnp.sqrt(jnp.sum(residual**2, axis=(-2, -1)))
    slack = 2 * gamma(n + 2, q.dtype) * trace + gamma(m * m, q.dtype) * frobenius
    return jnp.max(jnp.sqrt(1 + frobenius + slack)) * (1 + 4 * unit_roundoff(q.dtype))
