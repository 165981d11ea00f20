"""Constrained maps by name, and those that are rescaled by their own norm."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.linear.base import AbstractLinear, check_choice
from jnode.linear.dense import CayleyDense, Dense, dense_of
from jnode.linear.gram import gram_iteration, real_column
from jnode.linear.kernel import (
    AbstractKernelConv,
    AbstractWeightDense,
    resolve_kernel,
    scaled_slack,
)
from jnode.linear.newton_schulz import NewtonSchulzConv, NewtonSchulzDense
from jnode.linear.row_sum import AOLConv, AOLDense, SLLConv, SLLDense
from jnode.linear.spectral_conv import CayleyConv, spectrum_slack


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


_DENSE = {
    "cayley": CayleyDense,
    "rescaled": RescaledDense,
    "aol": AOLDense,
    "sll": SLLDense,
    "newton_schulz": NewtonSchulzDense,
}
_CONV = {
    "cayley": CayleyConv,
    "rescaled": RescaledConv,
    "aol": AOLConv,
    "sll": SLLConv,
    "newton_schulz": NewtonSchulzConv,
}
CONSTRAINTS = tuple(_DENSE)
"""The ways to keep a map's norm at 1."""


def constrained(
    shape: tuple[int, ...],
    out: int,
    *,
    constraint: str = "cayley",
    kernel_size: int = 3,
    padding: str = "circular",
    key: PRNGKeyArray,
) -> AbstractLinear:
    """A map of norm at most 1 from states of this shape.

    **Arguments:**

    - `shape`: `(size,)` for a dense map, `(height, width, channels)` for a convolution.
    - `out`: how many units or channels it gives.
    - `constraint`: "cayley" (orthogonal), "rescaled" (by its norm), "aol", "sll" (by
        row sums) or "newton_schulz" (nearly orthogonal).
    - `kernel_size`: of a convolution's kernel.
    - `padding`: of a convolution: "circular", or "zero" where the constraint allows it
        (rescaled, aol, sll).
    - `key`: of the initial weights.

    **Raises:** `ValueError` for any of these out of its range.
    """
    check_choice("constraint", constraint, CONSTRAINTS)
    if len(shape) == 1:
        return _DENSE[constraint](shape[0], out, key=key)
    height, width, channels = shape
    options = {"grid": (height, width), "kernel_size": kernel_size, "key": key}
    if constraint == "cayley":
        if padding != "circular":
            raise ValueError(
                f"padding of a cayley convolution must be 'circular', not {padding!r}: "
                "with another, choose constraint rescaled, aol or sll."
            )
        return CayleyConv(channels, out, **options)
    return _CONV[constraint](channels, out, padding=padding, **options)
