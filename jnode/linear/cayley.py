r"""The Cayley transform by matrix products alone.

A square $V$ gives the skew-Hermitian $A = V - V^H$ and the unitary
$Q = (I + A)^{-1}(I - A) = 2(I + A)^{-1} - I$ (Trockman & Kolter, ICLR 2021). The
inverse comes from Newton's iteration $X \leftarrow X(2I - (I + A)X)$ (Schulz 1933):
no LAPACK call, which can deadlock when batched inside a jitted graph on CPU, and
nothing that a TPU or GPU is slow at.

A complex matrix $R + iS$ is carried by its *column form* $[R; S]$, twice as high, and
acts by its real embedding $[[R, -S], [S, R]]$: real products on every platform.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Iterations stop where the residual is this small, less than float32 resolves.
RESIDUAL = 1e-9
# ||A|| is kept under this: rounding in the inverse grows with it, and an orthogonal
# matrix whose angles come within 2 atan(1 / 12) of pi is no poorer for the cap.
MAX_NORM = 12.0


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


def _product(a, b):
    return jnp.matmul(embed(a), b, precision="highest")


def _identity(n: int, dtype) -> Float[Array, "twice_n n"]:
    return jnp.eye(2 * n, n, dtype=dtype)


def _norm_bound(a):
    # ||A|| = ||A^4||^(1/4) <= ||A^4||_F^(1/4): within n^(1/8) of the norm. The scale
    # only keeps the powers in range; it cancels, and so do its derivatives.
    scale = jnp.maximum(jnp.max(jnp.abs(a), axis=(-2, -1), keepdims=True), 1e-12)
    scale = jax.lax.stop_gradient(scale)
    square = _product(a / scale, a / scale)
    fourth = _product(square, square)
    frobenius = jnp.sqrt(
        jnp.sum(fourth**2, axis=(-2, -1), keepdims=True) + jnp.asarray(1e-30, a.dtype)
    )
    return scale * jnp.sqrt(jnp.sqrt(frobenius)) * 1.001


@jax.custom_vjp
def _inverse(
    a: Float[Array, "batch twice_n n"],
) -> Float[Array, "batch twice_n n"]:
    """$(I + A)^{-1}$ for skew-Hermitian $A$ in column form."""
    eye = _identity(a.shape[-1], a.dtype)[None]
    shifted = embed(eye + a)
    square = _norm_bound(a) ** 2
    x = (eye - a) * (2 / (2 + square))
    # Eigenvalues of the first residual are at most N^2 / (2 + N^2) in size, and each
    # iteration squares them: 7 iterations at N = 3, 11 at the cap.
    first = jnp.min(jnp.log1p(2 / jnp.maximum(square, 1e-6)))
    iterations = jnp.ceil(jnp.log2(-math.log(RESIDUAL) / first))

    def body(_, x):
        residual = 2 * eye - jnp.matmul(shifted, x, precision="highest")
        return _product(x, residual)

    return jax.lax.fori_loop(0, jnp.maximum(iterations, 1).astype(int), body, x)


def _inverse_fwd(a):
    x = _inverse(a)
    return x, x


def _inverse_bwd(x, g):
    # dX = -X dA X, so the cotangent of A is -X^H G X^H: two products, no unrolling.
    xh = adjoint(x)
    return (-_product(_product(xh, g), xh),)


_inverse.defvjp(_inverse_fwd, _inverse_bwd)


def cayley(
    v: Float[Array, "batch twice_n n"],
) -> Float[Array, "batch twice_n n"]:
    r"""The unitary Cayley transform of a batch of square matrices in column form.

    **Arguments:**

    - `v`: any complex matrices $V = R + iS$, as $[R; S]$.

    **Returns:** $Q = 2(I + A)^{-1} - I$ with $A = V - V^H$, scaled down where its norm
    exceeds `MAX_NORM`; column form. In float32 $\|Q^H Q - I\|$ is about 1e-6.
    """
    a = v - adjoint(v)
    a = a * jnp.minimum(1.0, MAX_NORM / _norm_bound(a)).astype(a.dtype)
    return 2 * _inverse(a) - _identity(a.shape[-1], a.dtype)[None]
