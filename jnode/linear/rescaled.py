"""Spectral rescaling: a free map divided by a certified bound on its norm."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.linear.base import AbstractLinear
from jnode.linear.dense import Dense, dense_of
from jnode.linear.gram import gram_iteration, real_column
from jnode.linear.kernel import (
    AbstractKernelConv,
    AbstractWeightDense,
    resolve_kernel,
    scaled_slack,
)
from jnode.linear.spectral_conv import spectrum_slack


class RescaledDense(AbstractWeightDense):
    r"""$W = V / \beta(V)$ with $\beta(V) \ge \|V\|_2$ by Gram iteration.

    Its largest singular value is 1, the others are free (Delattre et al., ICML 2023).
    Costs 6 products of matrices of the smaller size when baked.
    """

    def resolve(self) -> tuple[Dense, Float[Array, ""]]:
        bound = gram_iteration(real_column(self.weight))[0]
        slack = scaled_slack(min(self.weight.shape), self.weight.dtype)
        return dense_of(self.weight / bound), jnp.asarray(slack, bound.dtype)


class RescaledConv(AbstractKernelConv):
    r"""A kernel divided by a certified bound on its convolution's norm.

    The bound is the largest over all frequencies, each by Gram iteration (Delattre et
    al., ICML 2023), so it is all but exact for circular padding. For zero padding it
    is that of the circular convolution on a grid enlarged by the kernel's radius, of
    which the zero-padded one is a part. Costs 6 products of [2 channels, 2 channels]
    matrices for each frequency when baked.
    """

    def resolve(self) -> tuple[AbstractLinear, Float[Array, ""]]:
        bound = jnp.max(gram_iteration(self.spectrum())) + spectrum_slack(self.kernel)
        kernel = self.kernel / bound
        # Entries of the kernel err, each of which acts on every frequency alike.
        size = self.kernel.shape[0] * min(self.kernel.shape[2:]) ** 0.5
        one = jnp.asarray(scaled_slack(int(size**2) + 1, kernel.dtype), kernel.dtype)
        one = jax.lax.stop_gradient(one)
        return resolve_kernel(kernel, one, self.grid, self.padding)
