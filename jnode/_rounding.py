r"""Rounding allowances: how far a computed result may stand from the exact one.

Higham, *Accuracy and Stability of Numerical Algorithms* (2002), section 3: a dot
product of length $n$ errs by at most $\gamma_n |x|^\top |y|$, $\gamma_n = nu/(1-nu)$.
"""

import jax.numpy as jnp
import numpy as np

CERTIFIABLE = ("float32", "float64")
"""The types in which a bound can be certified."""


def unit_roundoff(dtype) -> float:
    """$u$: half the spacing of `dtype` at 1.

    **Raises:** `TypeError` for a type that is neither float32 nor float64. In half
    precision the allowances would exceed what they are allowances for.
    """
    if np.dtype(dtype).name not in CERTIFIABLE:
        raise TypeError(
            "Bounds and constraints are computed in float32 or float64, not in "
            f"{np.dtype(dtype).name}: cast the arrays to float32. To evaluate a "
            "model in half precision, cast what jnode.resolve returns; nothing is "
            "certified of that."
        )
    return float(jnp.finfo(dtype).eps) / 2


def gamma(n: int, dtype) -> float:
    r"""$\gamma_n$ of Higham, for sums of `n` products in `dtype`; `inf` if $nu \ge 1$,
    where nothing is known.

    **Raises:** `TypeError` as `unit_roundoff`.
    """
    nu = n * unit_roundoff(dtype)
    return nu / (1 - nu) if nu < 1 else float("inf")
