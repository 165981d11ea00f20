"""SDP-based rescaling: almost-orthogonal rescaling with learned weights."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.constraints.aol import rescaled_kernel, rescaled_matrix
from jnode.constraints.base import AbstractConstraint, Grid, Kernel, Matrix, Resolved


class SLL(AbstractConstraint):
    r"""The rescaling of `AOL` with learned weights $q > 0$ of the rows.

    Araujo et al., ICLR 2023: an explicit Euler step with $hL = 2$ of the gradient flow
    of this map, with relu, is their layer $y - 2WT^{-1}\sigma(W^\top y + b)$. The cost
    is that of `AOL`. $\log q$ is clipped to $[-15, 15]$.
    """

    log_q: Float[Array, " out"]

    def __init__(self, out: int):
        """**Arguments:** the number of rows, or of output channels."""
        self.log_q = jnp.zeros(out)

    def matrix(self, v: Matrix) -> Resolved:
        return rescaled_matrix(v, self.log_q)

    def kernel(self, k: Kernel, grid: Grid, padding: str) -> Resolved:
        return rescaled_kernel(k, self.log_q, grid, padding)
