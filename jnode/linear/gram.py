r"""Gram iteration: certified upper bounds on spectral norms by matrix products alone.

$\|W\|_2 \le \|(W^H W)^{2^{k-1}}\|_F^{1/2^k}$ after any number of squarings $k$, and the
bounds converge superlinearly (Delattre et al., ICML 2023). Power iteration, by
contrast, gives lower bounds, which certify nothing.

A complex matrix $R + iS$ is carried by its *column form* $[R; S]$, twice as high, and
acts by its real embedding $[[R, -S], [S, R]]$: real products on every platform.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.bounds import gamma, unit_roundoff
from jnode.linear.products import matmul

ITERATIONS = 6


def embed(
    column: Float[Array, "batch twice_rows columns"],
) -> Float[Array, "batch twice_rows twice_columns"]:
    r"""$[R; S] \mapsto [[R, -S], [S, R]]$."""
    re, im = jnp.split(column, 2, axis=-2)
    return jnp.concatenate([column, jnp.concatenate([-im, re], axis=-2)], axis=-1)


def adjoint(
    column: Float[Array, "batch twice_rows columns"],
) -> Float[Array, "batch twice_columns rows"]:
    """The column form of the conjugate transpose."""
    re, im = jnp.split(column, 2, axis=-2)
    return jnp.concatenate([re.mT, -im.mT], axis=-2)


def gram_matrix(
    x: Float[Array, "batch twice_rows columns"],
) -> Float[Array, "batch twice_columns columns"]:
    r"""$X^H X$ in column form, by three quarters of the work of other products."""
    re, im = jnp.split(x, 2, axis=-2)
    cross = matmul(re.mT, im)
    return jnp.concatenate([matmul(x.mT, x), cross - cross.mT], axis=-2)


def _adjoint_times(a, b):
    (re, im), (re_b, im_b) = jnp.split(a, 2, axis=-2), jnp.split(b, 2, axis=-2)
    imaginary = matmul(re.mT, im_b) - matmul(im.mT, re_b)
    return jnp.concatenate([matmul(a.mT, b), imaginary], axis=-2)


def real_column(
    matrix: Float[Array, "rows columns"],
) -> Float[Array, "1 rows2 columns"]:
    """The column form of one real matrix."""
    return jnp.concatenate([matrix, jnp.zeros_like(matrix)])[None]


@partial(jax.jit, static_argnames="iterations")
def gram_iteration(
    column: Float[Array, "batch twice_rows columns"], iterations: int = ITERATIONS
) -> Float[Array, " batch"]:
    r"""Certified upper bounds on the spectral norms of a batch of complex matrices.

    Rounding is allowed for level by level: a computed Gram matrix of $X$,
    $\|X\|_F = 1$, errs by at most $2\gamma_{2n}$ in norm.

    **Arguments:**

    - `column`: matrices $R + iS$ in column form $[R; S]$ (a real one: $[R; 0]$).
    - `iterations`: squarings $k$. Each costs one batched matrix product of the
        smaller size. The bound exceeds the norm by at most $n^{2^{-k-1}}$, $n$ the
        number of (nearly) largest singular values: 3 % for $k = 6$, $n = 64$.
    """
    rows, columns = column.shape[-2] // 2, column.shape[-1]
    x = adjoint(column) if rows < columns else column
    u = unit_roundoff(x.dtype)
    scales = []
    for _ in range(iterations):
        scale = _frobenius(x)
        scales.append((scale, x.shape[-2]))
        x = x / scale[:, None, None]
        x = matmul(embed(adjoint(x)), x)
    bound = _frobenius(x) * (1 + gamma(x.shape[-2] * x.shape[-1], x.dtype))
    for scale, length in reversed(scales):
        bound = scale * (jnp.sqrt(bound + 2 * gamma(length + 8, x.dtype)) + 3 * u)
    return bound * (1 + 8 * iterations * u)


def _frobenius(x):
    # The smallest addend keeps the derivative finite at a matrix of zeros.
    tiny = jnp.asarray(jnp.finfo(x.dtype).tiny * 1e6, x.dtype)
    return jnp.sqrt(jnp.sum(x**2, axis=(-2, -1)) + tiny)


def isometry_residual(
    column: Float[Array, "batch twice_rows columns"],
) -> Float[Array, " batch"]:
    r"""A certified upper bound on $\|Q^H Q - I\|_2$ (of $QQ^H$, if $Q$ is wide).

    Of each matrix of a batch in column form. Its singular values then lie in
    $[\sqrt{1 - r}, \sqrt{1 + r}]$.

    An entry's parts in a computed $A^H B$ err by at most
    $\gamma_{2n}\|a_i\|\|b_j\|$, so all of it by $\sqrt 2\gamma_{2n}\|A\|_F\|B\|_F$ in
    norm, which for $A = B = Q$ would exceed by far what $Q$ is off. So $Q = H + L$ with
    entries of $H$ on a grid so coarse that $H^H H$ is exact in any order of summation,
    and only a product with the small $L$ rounds (an error-free splitting as in Ozaki et
    al., Numer. Algorithms 2012): $Q^H Q = H^H H + M + M^H$ with $M = (H + L/2)^H L$.
    """
    rows, columns = column.shape[-2] // 2, column.shape[-1]
    q = adjoint(column) if rows < columns else column
    # Products of entries of H are multiples of the grid's square, so in 24 bits, and in
    # 53, sums of them are exact below 4: the square of the length of its columns.
    grid = 2.0**-11 if q.dtype == jnp.float32 else 2.0**-25
    high = jnp.round(q / grid) * grid
    low = q - high
    coarse = gram_matrix(high)
    half = _adjoint_times(high + low / 2, low)
    rest = half + adjoint(half)
    n = q.shape[-1]
    eye = jnp.eye(2 * n, n, dtype=q.dtype)[None]
    frobenius = jnp.sqrt(jnp.sum((coarse - eye + rest) ** 2, axis=(-2, -1)))
    squares = jnp.sum(q**2, axis=-2)
    whole = jnp.sum(squares, axis=-1)
    part = jnp.sqrt(jnp.sum(low**2, axis=(-2, -1)) * whole)
    # Columns are longer than that only where Q is no isometry at all. Entries of L are
    # no larger than those of Q, and those of H + L/2 at most half as large again: M and
    # its adjoint err by 2 sqrt(2) times 1.5 gammas, the rest by no more than is left.
    exact = (jnp.max(squares, axis=-1) <= 2) & (q.shape[-2] <= 2**20)
    size = jnp.where(exact, 2.5 * part, 6 * whole)
    rounding = 2 * gamma(q.shape[-2] + 8, q.dtype) * size
    return frobenius * (1 + gamma(2 * n * n + 8, q.dtype)) + rounding


def isometry_norm(
    column: Float[Array, "batch twice_rows columns"],
) -> Float[Array, " batch"]:
    r"""A certified upper bound on the norm of each of a batch of near-isometries.

    It hardly depends on the weights, so its gradient, which would be noise, is stopped.
    """
    bound = jnp.sqrt(1 + isometry_residual(jax.lax.stop_gradient(column)))
    return bound * (1 + 4 * unit_roundoff(column.dtype))


def norm_bound(column: Float[Array, "batch twice_rows columns"]) -> Float[Array, ""]:
    r"""A certified upper bound on the largest norm of a batch of matrices.

    The smaller of `isometry_norm`, which is all but exact where all singular values are
    1, and Gram iteration, which exceeds the norm by a factor of up to $n^{1/2048}$
    there.
    """
    norms = jnp.stack(
        [jnp.max(isometry_norm(column)), jnp.max(gram_iteration(column, 10))]
    )
    # An overflow gives no bound.
    return jnp.min(jnp.where(jnp.isnan(norms), jnp.inf, norms))


def spectral_norm(matrix: Float[Array, "rows columns"]) -> Float[Array, ""]:
    r"""A certified upper bound on $\|W\|_2$ of a real matrix, rounding included.

    By Gram iteration (Delattre et al., ICML 2023). Power iteration gives lower bounds,
    which certify nothing. Differentiable.

    **Raises:** `ValueError` for an array that is not a matrix; `TypeError` for another
    type than float32 or float64.
    """
    if matrix.ndim != 2:
        raise ValueError(
            f"matrix must have two axes, not the shape {matrix.shape}; convolutions "
            "of this package have a norm()."
        )
    return norm_bound(real_column(matrix))
