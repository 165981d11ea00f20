r"""Rescaling of rows: almost-orthogonal (AOL) and SDP-based (SLL) maps.

For any $V$ and any positive $q$ the rows of $W = D^{-1/2} V$ with
$D_{ii} = \sum_j |V V^\top|_{ij}\, q_j / q_i$ give $\|W\|_2 \le 1$, since
$D - V V^\top$ is diagonally dominant after a change of scale by $q$. With $q = 1$ it is
Prach & Lampert's almost-orthogonal rescaling (ECCV 2022; there of columns), with a
learned $q$ the rescaling of SDP-based Lipschitz layers (Araujo et al., ICLR 2023).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.bounds import gamma
from jnode.linear.base import AbstractLinear
from jnode.linear.dense import Dense, dense_of
from jnode.linear.kernel import (
    AbstractKernelConv,
    AbstractWeightDense,
    resolve_kernel,
    scaled_slack,
)

# Learned weights are kept within e^15 of 1: their quotients then neither overflow nor
# vanish in float32, and any positive weights give a norm of at most 1.
LARGEST_LOG_Q = 15.0


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


class AOLDense(AbstractWeightDense):
    r"""Almost-orthogonal rescaling: $W = \mathrm{diag}(\sum_j |VV^\top|_{ij})^{-1/2}V$.

    Prach & Lampert, ECCV 2022. Costs one matrix product when baked.
    """

    def _log_q(self) -> Float[Array, " out"]:
        return jnp.zeros(len(self.weight), self.weight.dtype)

    def resolve(self) -> tuple[Dense, Float[Array, ""]]:
        v = self.weight
        out, size = v.shape
        gram = jnp.abs(jnp.matmul(v, v.T, precision="highest"))
        scale = _scale(gram, _row_norms(v), self._log_q(), size + out + 32)
        one = jnp.asarray(scaled_slack(min(v.shape), v.dtype), v.dtype)
        return dense_of(scale[:, None] * v), one


class SLLDense(AOLDense):
    r"""SDP-based rescaling: AOL's with learned weights $q > 0$ of the rows.

    Araujo et al., ICLR 2023: an explicit Euler step with $hL = 2$ of the gradient flow
    of this map, with relu, is their layer $y - 2WT^{-1}\sigma(W^\top y + b)$. Costs one
    matrix product when baked.
    """

    log_q: Float[Array, " out"]

    def __init__(self, in_size: int, out_size: int, *, key: PRNGKeyArray):
        """**Arguments:** the sizes, and the key of the initial weights."""
        AbstractWeightDense.__init__(self, in_size, out_size, key=key)
        self.log_q = jnp.zeros(out_size)

    def _log_q(self) -> Float[Array, " out"]:
        return self.log_q


def _shifts(size: int) -> Float[np.ndarray, "taps taps shifts"]:
    """For each pair of taps, which shift lies between them, one-hot."""
    taps = np.stack(np.meshgrid(*[np.arange(size)] * 2, indexing="ij"), -1)
    taps = taps.reshape(-1, 2)
    delta = taps[None] - taps[:, None] + size - 1
    index = delta[..., 0] * (2 * size - 1) + delta[..., 1]
    return np.eye((2 * size - 1) ** 2)[index]


class AOLConv(AbstractKernelConv):
    r"""Almost-orthogonal rescaling of a convolution's output channels.

    The sum runs over the kernel's autocorrelation, that is, over all channels and all
    shifts (Prach & Lampert, ECCV 2022). It bounds the convolution on the infinite
    grid, hence with circular and with zero padding alike. Costs one product of
    [taps out, in] matrices when baked, whatever the grid.
    """

    def _log_q(self) -> Float[Array, " out"]:
        return jnp.zeros(self.kernel.shape[2], self.kernel.dtype)

    def resolve(self) -> tuple[AbstractLinear, Float[Array, ""]]:
        size, _, out, inputs = self.kernel.shape
        dtype = self.kernel.dtype
        taps = self.kernel.reshape(size * size * out, inputs)
        gram = jnp.matmul(taps, taps.T, precision="highest")
        gram = gram.reshape(size * size, out, size * size, out)
        shifts = jnp.asarray(_shifts(size), dtype)
        # Exact but for the order of the sums: the shifts are zeros and ones.
        correlation = jnp.einsum("aobp,abs->ops", gram, shifts, precision="highest")
        rows = jnp.sum(jnp.abs(correlation), axis=2)
        # Sizes of an output's taps, summed: their products bound those in the sums.
        sizes = jnp.sum(jnp.abs(taps).reshape(size * size, out, inputs), axis=0)
        length = inputs + size**4 + (2 * size - 1) ** 2 + out + 32
        scale = _scale(rows, _row_norms(sizes), self._log_q(), length)
        one = scaled_slack(size * size * min(out, inputs), dtype)
        return resolve_kernel(
            self.kernel * scale[None, None, :, None],
            jnp.asarray(one, dtype),
            self.grid,
            self.padding,
        )


class SLLConv(AOLConv):
    """SDP-based rescaling: AOL's with learned weights of the output channels.

    Araujo et al., ICLR 2023. Bounds and cost as `AOLConv`.
    """

    log_q: Float[Array, " out"]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        grid: tuple[int, int],
        kernel_size: int = 3,
        padding: str = "circular",
        key: PRNGKeyArray,
    ):
        """**Arguments:** as of the other convolutions of a free kernel."""
        AbstractKernelConv.__init__(
            self,
            in_channels,
            out_channels,
            grid=grid,
            kernel_size=kernel_size,
            padding=padding,
            key=key,
        )
        self.log_q = jnp.zeros(out_channels)

    def _log_q(self) -> Float[Array, " out"]:
        return self.log_q
