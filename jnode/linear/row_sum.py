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

from jnode._rounding import gamma
from jnode.linear.base import AbstractLinear
from jnode.linear.dense import Dense, dense_of
from jnode.linear.kernel import (
    AbstractKernelConv,
    AbstractWeightDense,
    resolve_kernel,
    scaled_slack,
)


def _scale(gram_sums, rounding, length: int, dtype):
    """$D^{-1/2}$, rounded to the safe side."""
    sums = (1 + gamma(length, dtype)) * (gram_sums + gamma(length, dtype) * rounding)
    return 1 / jnp.sqrt(jnp.maximum(sums, jnp.finfo(dtype).tiny * 1e6))


class AOLDense(AbstractWeightDense):
    r"""Almost-orthogonal rescaling: $W = \mathrm{diag}(\sum_j |VV^\top|_{ij})^{-1/2}V$.

    Prach & Lampert, ECCV 2022. Costs one matrix product when baked.
    """

    def _q(self) -> Float[Array, " out"]:
        return jnp.ones(len(self.weight), self.weight.dtype)

    def resolve(self) -> tuple[Dense, Float[Array, ""]]:
        v, q = self.weight, self._q()
        out, size = v.shape
        gram = jnp.abs(jnp.matmul(v, v.T, precision="highest"))
        sums = jnp.matmul(gram, q, precision="highest") / q
        reach = jnp.matmul(jnp.abs(v).T, q, precision="highest")
        rounding = jnp.matmul(jnp.abs(v), reach, precision="highest") / q
        scale = _scale(sums, rounding, size + out + 16, v.dtype)
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

    def _q(self) -> Float[Array, " out"]:
        return jnp.exp(self.log_q)


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

    def _q(self) -> Float[Array, " out"]:
        return jnp.ones(self.kernel.shape[2], self.kernel.dtype)

    def resolve(self) -> tuple[AbstractLinear, Float[Array, ""]]:
        size, _, out, inputs = self.kernel.shape
        dtype, q = self.kernel.dtype, self._q()
        taps = self.kernel.reshape(size * size * out, inputs)
        gram = jnp.matmul(taps, taps.T, precision="highest")
        gram = gram.reshape(size * size, out, size * size, out)
        shifts = jnp.asarray(_shifts(size), dtype)
        # Exact but for the order of the sums: the shifts are zeros and ones.
        correlation = jnp.einsum("aobp,abs->ops", gram, shifts, precision="highest")
        rows = jnp.sum(jnp.abs(correlation), axis=2)
        sums = jnp.matmul(rows, q, precision="highest") / q
        weights = jnp.tile(q, size * size)
        reach = jnp.matmul(jnp.abs(taps).T, weights, precision="highest")
        rounding = jnp.matmul(jnp.abs(taps), reach, precision="highest")
        rounding = rounding.reshape(size * size, out).sum(axis=0) / q
        length = inputs + size**4 + (2 * size - 1) ** 2 + out + 16
        scale = _scale(sums, rounding, length, dtype)
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

    def _q(self) -> Float[Array, " out"]:
        return jnp.exp(self.log_q)
