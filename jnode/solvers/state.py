"""States and right-hand sides: what dtype a solve runs in."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jnode.fields.base import AbstractVectorField


class RightHandSide(eqx.Module):
    """$f(t, y)$ of one array, its arguments bound, its value of the state's type."""

    field: Any
    args: PyTree = None

    def __call__(self, t: Any, y: Array, args: Any = None) -> Array:
        del args
        value = self.field(t, y, self.args)
        if not eqx.is_array_like(value):
            raise TypeError(
                "field must return an array for a state that is one, not "
                f"{type(value).__name__}."
            )
        value = jnp.asarray(value)
        if value.dtype != y.dtype:
            value = value.astype(y.dtype)
        if value.shape == y.shape:
            return value
        sizes = zip(value.shape[::-1], y.shape[::-1], strict=False)
        if value.ndim > y.ndim or any(size not in (1, full) for size, full in sizes):
            raise ValueError(
                f"field must return an array of the state's shape {y.shape}, not "
                f"{value.shape}."
            )
        return jnp.broadcast_to(value, y.shape)


def promoted(field: Any, y0: PyTree, t0: Any, t1: Any, args: PyTree) -> PyTree:
    """A state as Diffrax would have it: arrays, of at least the times' type.

    Python's times count as the default float. A state narrower than what the field
    makes of it (float32, where the weights are float64) takes on that type. A list of
    numbers is an array for one of the package's fields, else, as in Diffrax, a PyTree.
    """
    if isinstance(y0, list) and isinstance(field, AbstractVectorField):
        numbers = all(isinstance(x, (int, float)) for x in jax.tree.leaves(y0))
        y0 = np.asarray(y0) if numbers else y0
    with jax.numpy_dtype_promotion("standard"):
        time = _time_dtype(t0, t1)
        y0 = jax.tree.map(lambda y: jnp.asarray(y, jnp.result_type(y, time)), y0)
        widest = jnp.finfo(jnp.asarray(0.0).dtype).bits
        if all(jnp.finfo(y.dtype).bits >= widest for y in jax.tree.leaves(y0)):
            return y0
        rates = eqx.filter_eval_shape(field, jnp.asarray(t0, time), y0, args)
        if jax.tree.structure(rates) != jax.tree.structure(y0):
            return y0  # the solve itself will say what is wrong
        return jax.tree.map(
            lambda y, rate: jnp.asarray(y, jnp.result_type(y, rate)), y0, rates
        )


def _time_dtype(*times):
    dtype = jnp.result_type(*times)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.asarray(0.0).dtype


def is_fast(y0: PyTree) -> bool:
    """Whether a state is one array of real numbers."""
    return eqx.is_array(y0) and jnp.issubdtype(y0.dtype, jnp.floating)


def real_dtype(y0: PyTree[Array]) -> Any:
    """The real type that all arrays of a state promote to."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*jax.tree.leaves(y0), jnp.zeros((), jnp.bfloat16))
    return jnp.finfo(dtype).dtype
