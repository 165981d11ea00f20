"""Constrained maps by name."""

from jaxtyping import PRNGKeyArray

from jnode.linear.base import AbstractLinear, check_choice
from jnode.linear.dense import CayleyDense
from jnode.linear.newton_schulz import NewtonSchulzConv, NewtonSchulzDense
from jnode.linear.rescaled import RescaledConv, RescaledDense
from jnode.linear.row_sum import AOLConv, AOLDense, SLLConv, SLLDense
from jnode.linear.spectral_conv import CayleyConv

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
