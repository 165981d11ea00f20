r"""The Cayley transform by matrix products alone.

A square $U$ gives the skew-Hermitian $A = U - U^H$ and the unitary $Q = (I + A)^{-1}(I
- A) = 2(I + A)^{-1} - I$. A tall matrix, $V$ below $U$, gives the isometry $[2(I +
A)^{-1} - I; -2V(I + A)^{-1}]$ with $A = U - U^H + V^H V$ (Trockman & Kolter, ICLR
2021). The inverse, of the smaller side, comes from block elimination down to small
blocks and Newton's iteration $X \leftarrow X(2I - (I + A)X)$ (Schulz 1933) there. So
there is no LAPACK call, which can deadlock when batched inside a jitted graph on CPU,
and no operation that is slow on TPUs or GPUs. Complex matrices are carried by their
column form (see `jnode.linear.gram`).
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from jnode.constraints.base import (
    AbstractConstraint,
    Grid,
    Kernel,
    Kernels,
    Matrix,
    Resolved,
    ResolvedStack,
)
from jnode.linear.gram import adjoint, embed, gram_matrix, isometry_norm, real_column
from jnode.linear.operators import Dense
from jnode.linear.products import matmul
from jnode.linear.spectral_conv import (
    SpectralConv,
    check_circular,
    kernel_spectrum,
    transform_slack,
)

# Iterations stop at a residual below what float32 resolves.
RESIDUAL = 1e-9
# ||A|| is kept under this: rounding in the inverse grows with it, and an orthogonal
# matrix whose angles come within 2 atan(1 / 12) of pi is no poorer for the cap.
MAX_NORM = 12.0
# Matrices of at most this size are inverted by Newton's iteration.
LEAF = 16
# The same except on CPU, where a matrix unit takes [128, 128] at a time.
WHOLE = 64


class Cayley(AbstractConstraint):
    """Orthogonal maps; isometries, or their transposes, where the sizes differ.

    For a circular convolution the transform is applied to each frequency (Trockman &
    Kolter, ICLR 2021). It costs the inverse of one matrix of the smaller size, by block
    elimination; for a convolution, of one complex matrix for each frequency.
    """

    def matrix(self, v: Matrix) -> Resolved:
        q = _isometries(real_column(v))
        return Dense(q[0, : len(v)]), isometry_norm(q)[0]

    def kernel(self, k: Kernel, grid: Grid, padding: str) -> Resolved:
        """**Raises:** `ValueError` for a kernel larger than 5, or zero padding."""
        return jax.tree.map(lambda x: x[0], self.kernels(k[None], grid, padding))

    def kernels(self, k: Kernels, grid: Grid, padding: str) -> ResolvedStack:
        """**Raises:** as `kernel`: `ValueError` for larger ones, or zero padding."""
        check_circular(padding)
        if k.shape[1] > 5:
            raise ValueError(
                "kernel_size must be 1, 3 or 5 for the constraint cayley, not "
                f"{k.shape[1]}."
            )
        # One axis for the frequencies of all kernels: along the lanes of a TPU the few
        # of one kernel would leave most of them idle.
        spectra = jax.vmap(lambda k: kernel_spectrum(k, grid))(k)
        q = _isometries(spectra.reshape(-1, *spectra.shape[2:]))
        norms = isometry_norm(q).reshape(spectra.shape[:2])
        bounds = jnp.max(norms, axis=1) * transform_slack(grid, q.dtype)
        operators = eqx.filter_vmap(lambda q: SpectralConv.from_column(q, grid))(
            q.reshape(spectra.shape)
        )
        return operators, bounds


def _isometries(column):
    """The transforms of matrices, wide ones by way of their adjoints."""
    if column.shape[-2] // 2 < column.shape[-1]:
        return adjoint(cayley(adjoint(column)))
    return cayley(column)


@jax.jit
def cayley(
    v: Float[Array, "batch twice_rows columns"],
) -> Float[Array, "batch twice_rows columns"]:
    r"""The Cayley transform of a batch of square or tall matrices in column form.

    **Arguments:**

    - `v`: any complex matrices $R + iS$, as $[R; S]$, with no fewer rows than columns.

    **Returns:** isometries of the same shape, in column form; unitary, if square. $A$
    is scaled down where its norm exceeds `MAX_NORM`. In float32 $\|Q^H Q - I\|$ is
    about 1e-6.
    """
    n = v.shape[-1]
    u, w = _split_rows(v, n)
    a = u - adjoint(u)
    if w.shape[-2]:
        a = a + gram_matrix(w)
    scale = _cap(a)
    eye = _identity(n, a.dtype)[None]
    x = _inverse(eye + a * scale)
    top = 2 * x - eye
    if not w.shape[-2]:
        return top
    below = -2 * _product(w * jnp.sqrt(scale), x)
    return _join_rows(top, below)


def _product(a, b):
    return matmul(embed(a), b)


def _identity(n: int, dtype) -> Float[Array, "twice_n n"]:
    return jnp.eye(2 * n, n, dtype=dtype)


def _norm_bound(a):
    # ||A||^2 = ||(A^H A)^2||^(1/2) <= ||(A^H A)^2||_F^(1/2): within n^(1/8) of ||A||.
    # The scale only keeps the powers in range; it cancels, and so do its derivatives.
    scale = jnp.maximum(jnp.max(jnp.abs(a), axis=(-2, -1), keepdims=True), 1e-12)
    scale = jax.lax.stop_gradient(scale)
    # A Gram matrix is Hermitian, so its square is the Gram matrix of it.
    fourth = gram_matrix(gram_matrix(a / scale))
    frobenius = jnp.sqrt(
        jnp.sum(fourth**2, axis=(-2, -1), keepdims=True) + jnp.asarray(1e-30, a.dtype)
    )
    return scale * jnp.sqrt(jnp.sqrt(frobenius)) * 1.001


def _cap(a):
    """The factor of each matrix that keeps its norm under `MAX_NORM`."""

    def scale(a):
        return jnp.minimum(1.0, MAX_NORM / _norm_bound(a)).astype(a.dtype)

    # The factor is seldom below 1. Where it is 1, its derivatives, which cost as much
    # as those of the inverse, are not computed.
    ones = jnp.ones((len(a), 1, 1), a.dtype)
    largest = _largest(_norm_bound(jax.lax.stop_gradient(a)))
    return jax.lax.cond(largest > MAX_NORM, scale, lambda _: ones, a)


@custom_vmap
def _largest(x):
    """Of all numbers, of other matrices under `jax.vmap` too: what decides over a
    branch or the length of a loop must be one number, or both branches are computed."""
    return jnp.max(x)


@_largest.def_vmap
def _largest_of_many(size, batched, x):
    del size, batched
    return _largest(x), False


@jax.custom_jvp
def _inverse(m: Float[Array, "batch twice_n n"]) -> Float[Array, "batch twice_n n"]:
    """$M^{-1}$ in column form, for $M$ whose Hermitian part is at least $I$.

    Except on CPU, few products take less time than few operations, if the matrices are
    neither large nor so small that elimination has nothing to do.
    """
    if not LEAF < m.shape[-1] <= WHOLE:
        return _eliminate(m)
    return jax.lax.platform_dependent(m, cpu=_eliminate, default=_newton_whole)


def _eliminate(m):
    # Gauss and Jordan's elimination in place, by blocks: after the k-th turn the first
    # k blocks of rows and columns are exchanged for each other. A pivot is the Schur
    # complement of those before it, whose Hermitian part is at least I as well, so none
    # has to be sought. All turns together cost about as much as one product, where
    # Newton's iteration alone costs some twenty; and as a loop they compile quickly.
    n = m.shape[-1]
    blocks = -(-n // LEAF)
    if blocks == 1:
        return _newton(m)
    size = -(-n // blocks)
    x = _padded(m.reshape(len(m), 2, n, n), blocks * size)
    one = _identity(size, m.dtype)[None]

    def flat(x):
        return x.reshape(len(x), -1, x.shape[-1])

    def turn(k, x):
        def cut(x, axis):
            return jax.lax.dynamic_slice_in_dim(x, k * size, size, axis)

        def put(x, y, axis):
            y = jnp.broadcast_to(y, (*x.shape[:axis], size, *x.shape[axis + 1 :]))
            return jax.lax.dynamic_update_slice_in_dim(x, y, k * size, axis)

        rows, columns = flat(cut(x, 2)), cut(x, 3)
        right = _product(_newton(cut(rows, 2)), put(rows, one, 2))
        left = put(columns, -one.reshape(1, 2, size, size), 2)
        zero = jnp.zeros((), x.dtype)
        rest = put(put(x, zero, 2), zero, 3)
        return rest - _product(flat(left), right).reshape(x.shape)

    x = jax.lax.fori_loop(0, blocks, turn, x)
    return x[:, :, :n, :n].reshape(m.shape)


def _padded(x, size):
    """Matrices, real parts before imaginary ones, with an identity beside them."""
    more = size - x.shape[-1]
    corner = jnp.pad(jnp.eye(more, dtype=x.dtype), ((size - more, 0),) * 2)
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, more)))
    return padded.at[:, 0].add(corner)


def _newton(m):
    eye = _identity(m.shape[-1], m.dtype)[None]
    factor, turns = _start(m - eye)
    embedded = embed(m)

    def body(_, x):
        residual = 2 * eye - matmul(embedded, x)
        return _product(x, residual)

    return jax.lax.fori_loop(0, turns, body, adjoint(m) * factor)


def _newton_whole(m):
    """As `_newton`, on real embeddings throughout: twice the products' work, and none
    but them in a turn."""
    n = m.shape[-1]
    factor, turns = _start(m - _identity(n, m.dtype)[None])
    embedded, two = embed(m), 2 * jnp.eye(2 * n, dtype=m.dtype)[None]

    def body(_, x):
        return matmul(x, two - matmul(embedded, x))

    return jax.lax.fori_loop(0, turns, body, embedded.mT * factor)[..., :n]


def _start(a):
    """For Newton's iteration to invert $I + A$: the factor of its adjoint that it
    begins with, and the number of turns."""
    # The singular values of I + A lie in [1, 1 + |A|].
    square = (1 + _norm_bound(a)) ** 2
    # Eigenvalues of the first residual are at most (S - 1) / (S + 1) in size, and each
    # iteration squares them.
    first = jnp.log1p(2 / jnp.maximum(_largest(square) - 1, 1e-6))
    turns = jnp.ceil(jnp.log2(-math.log(RESIDUAL) / first))
    return 2 / (1 + square), jnp.maximum(turns, 1).astype(int)


@_inverse.defjvp
def _inverse_jvp(primals, tangents):
    # dX = -X dM X, two products either way: transposed, the cotangent of M is
    # -X^H G X^H. As a rule of forward mode it serves both modes, and Hessians.
    x = _inverse(*primals)
    return x, -_product(_product(x, *tangents), x)


def _split_rows(column, n):
    """The first `n` rows of the matrices, and the others."""
    re, im = jnp.split(column, 2, axis=-2)
    parts = ((re[:, :n], im[:, :n]), (re[:, n:], im[:, n:]))
    upper, lower = (jnp.concatenate(part, axis=-2) for part in parts)
    return upper, lower


def _join_rows(upper, lower):
    halves = (jnp.split(part, 2, axis=-2) for part in (upper, lower))
    (re, im), (re_below, im_below) = halves
    return jnp.concatenate([re, re_below, im, im_below], axis=-2)
