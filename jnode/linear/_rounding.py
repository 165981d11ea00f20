r"""Rounding allowances: how far a float32 result may stand from the exact one.

Higham, *Accuracy and Stability of Numerical Algorithms* (2002), section 3: a dot
product of length $n$ errs by at most $\gamma_n |x|^\top |y|$, $\gamma_n = nu/(1-nu)$.
"""

import jax.numpy as jnp


def unit_roundoff(dtype) -> float:
    """$u$: half the spacing of `dtype` at 1."""
    return float(jnp.finfo(dtype).eps) / 2


def gamma(n: int, dtype) -> float:
    r"""$\gamma_n$ of Higham, for sums of `n` products in `dtype`."""
    nu = n * unit_roundoff(dtype)
    return nu / (1 - nu)
