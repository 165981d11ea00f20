r"""Almost-orthogonal rescaling (AOL), and the rescaling of rows that SLL shares.

For any $V$ and any positive $q$ the rows of $W = D^{-1/2} V$ with
$D_{ii} = \sum_j |V V^\top|_{ij}\, q_j / q_i$ give $\|W\|_2 \le 1$, since
$D - V V^\top$ is diagonally dominant after a change of scale by $q$. With $q = 1$ it is
Prach & Lampert's almost-orthogonal rescaling (ECCV 2022; there of columns).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jnode.bounds import gamma
from jnode.constraints.base import (
    AbstractConstraint,
    Grid,
    Kernel,
    Matrix,
    Resolved,
    convolution,
    scaled_slack,
)
from jnode.linear.operators import Dense
from jnode.linear.products import matmul

# Learned weights are clipped to [e^-15, e^15], so that their quotients neither overflow
# nor vanish in float32. Any positive weights give a norm of at most 1.
LARGEST_LOG_Q = 15.0


class AOL(AbstractConstraint):
    r"""Almost-orthogonal rescaling: $W = \mathrm{diag}(\sum_j |VV^\top|_{ij})^{-1/2}V$.

    Prach & Lampert, ECCV 2022. It costs one matrix product; for a convolution, one of
    [taps out, in] matrices, whatever the grid.
    """

    def matrix(self, v: Matrix) -> Resolved:
        return rescaled_matrix(v, jnp.zeros(len(v), v.dtype))

    def kernel(self, k: Kernel, grid: Grid, padding: str) -> Resolved:
        return rescaled_kernel(k, jnp.zeros(k.shape[2], k.dtype), grid, padding)


def rescaled_matrix(v: Matrix, log_q: Float[Array, " out"]) -> Resolved:
    r"""The operator of a matrix, its rows rescaled by $D^{-1/2}$, and its bound."""
    out, size = v.shape
    gram = jnp.abs(matmul(v, v.T))
    scale = _scale(gram, _row_norms(v), log_q, size + out + 32)
    return Dense(scale[:, None] * v), scaled_slack(min(v.shape), v.dtype)


def rescaled_kernel(
    kernel: Kernel, log_q: Float[Array, " out"], grid: Grid, padding: str
) -> Resolved:
    r"""The operator of a kernel, its output channels rescaled, and its bound.

    The sum runs over the kernel's autocorrelation, that is, over all channels and all
    shifts (Prach & Lampert, ECCV 2022). It bounds the convolution on the infinite
    grid, hence with circular and with zero padding alike.
    """
    size, _, out, inputs = kernel.shape
    taps = kernel.reshape(size * size * out, inputs)
    gram = matmul(taps, taps.T).reshape(size * size, out, size * size, out)
    shifts = jnp.asarray(_shifts(size), kernel.dtype)
    # Exact up to the order of the sums: the shifts are zeros and ones.
    correlation = jnp.einsum("aobp,abs->ops", gram, shifts, precision="highest")
    rows = jnp.sum(jnp.abs(correlation), axis=2)
    # Summed sizes of an output's taps, whose products bound those in the sums.
    sizes = jnp.sum(jnp.abs(taps).reshape(size * size, out, inputs), axis=0)
    length = inputs + size**4 + (2 * size - 1) ** 2 + out + 32
    scale = _scale(rows, _row_norms(sizes), log_q, length)
    one = scaled_slack(size * size * min(out, inputs), kernel.dtype)
    return convolution(kernel * scale[None, None, :, None], one, grid, padding)


def _scale(gram, norms, log_q, length: int):
    r"""$D^{-1/2}$, rounded to the safe side.

    **Arguments:** $|VV^\top|$ (or what takes its place); norms of rows whose products
    bound the sums of sizes in it; $\log q$; and how many terms each sum has.
    """
    log_q = jnp.clip(log_q, -LARGEST_LOG_Q, LARGEST_LOG_Q)
    # Quotients, not products with q, which could vanish before they are divided.
    ratios = jnp.exp(log_q[None] - log_q[:, None])
    gram_sums = jnp.sum(gram * ratios, axis=1)
    rounding = norms * jnp.sum(ratios * norms[None], axis=1)
    dtype = gram.dtype
    sums = (1 + gamma(length, dtype)) * (gram_sums + gamma(length, dtype) * rounding)
    return 1 / jnp.sqrt(jnp.maximum(sums, jnp.finfo(dtype).tiny * 1e6))


def _row_norms(v):
    # The smallest addend keeps the derivative finite at a row of zeros.
    return jnp.sqrt(jnp.sum(v**2, axis=1) + jnp.asarray(1e-30, v.dtype))


def _shifts(size: int) -> Float[np.ndarray, "taps taps shifts"]:
    """For each pair of taps, which shift lies between them, one-hot."""
    taps = np.stack(np.meshgrid(*[np.arange(size)] * 2, indexing="ij"), -1)
    taps = taps.reshape(-1, 2)
    delta = taps[None] - taps[:, None] + size - 1
    index = delta[..., 0] * (2 * size - 1) + delta[..., 1]
    return np.eye((2 * size - 1) ** 2)[index]
