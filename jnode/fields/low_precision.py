"""Mixed precision: a field's products in a shorter type, all else as it was."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float

from jnode.fields.base import AbstractUncertifiedField, AbstractVectorField
from jnode.fields.inner_form import InnerForm
from jnode.linear import AbstractLinear
from jnode.linear.base import check_choice
from jnode.linear.low_precision import LowPrecision

DTYPES = ("bfloat16", "float16")


class LowPrecisionField(AbstractUncertifiedField):
    r"""Another field, its matrix products computed in bfloat16 or float16.

    Reparametrisations (a Cayley transform, say), biases, activations, time, and the
    solver's sums keep their type; weights are rounded as the field is baked, and get
    their gradients. Less work where the hardware multiplies shorter numbers faster, as
    TPUs and GPUs do; not on CPU.

    Rounding makes it a step function, of which nothing is certified: `lipschitz` and
    `log_norm` are `inf`. Certify `field`, and take what `benchmarks/precision.py` tells
    of how far the two part for what it is, an empirical lower bound.
    """

    field: AbstractVectorField
    dtype: str = eqx.field(static=True)

    def __init__(self, field: AbstractVectorField, dtype: str = "bfloat16"):
        """**Arguments:** the field and the type, "bfloat16" or "float16".

        **Raises:** `ValueError` for another type.
        """
        check_choice("dtype", dtype, DTYPES)
        is_map = lambda x: isinstance(x, AbstractLinear)  # noqa: E731
        self.field = jax.tree.map(
            lambda x: LowPrecision(x, dtype) if is_map(x) else x, field, is_leaf=is_map
        )
        self.dtype = dtype

    def __call__(
        self, t: Any, y: Float[Array, "*state"], args: Any = None
    ) -> Float[Array, "*state"]:
        return self.field(t, y, args)

    @property
    def time_invariant(self) -> bool:
        return self.field.time_invariant

    @property
    def takes_batches(self) -> bool:
        return self.field.takes_batches

    def inner_form(self) -> InnerForm | None:
        return self.field.inner_form()
