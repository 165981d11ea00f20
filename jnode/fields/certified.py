"""Any callable as a vector field, with bounds that its author vouches for."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jnode.bounds import Bounds
from jnode.fields.base import AbstractVectorField


class Certified(AbstractVectorField):
    r"""A callable $f(t, y, \mathrm{args})$ of your own, with a formula for its bounds.

    ```python
    field = jnode.Certified(mlp, bounds=lambda mlp: jnode.Bounds(lipschitz_of(mlp)))
    ```

    The bounds are computed from `fn` at every request, so they remain true when its
    weights change. Certificates and reports list the correctness of the formula as an
    assumption.
    """

    fn: Callable
    claim: Callable[[Any], Bounds]

    def __init__(self, fn: Callable, bounds: Callable[[Any], Bounds] | Bounds):
        """**Arguments:**

        - `fn`: any callable `fn(t, y, args)`: a function, or an Equinox module whose
          arrays are then trained. Its constrained maps are computed once for each
          solve.
        - `bounds`: a function of `fn` that gives its `Bounds`, of the L2 norm of the
          ravelled state. Plain `Bounds` are accepted only if `fn` holds no array that
          could change.

        **Raises:** `TypeError` for an `fn` or `bounds` that is neither; `ValueError`
        for plain bounds if `fn` holds floating-point arrays or numbers, and for a
        function `bounds` that holds some.
        """
        if not callable(fn):
            raise TypeError(
                f"fn must be callable as fn(t, y, args), not {type(fn).__name__}."
            )
        if isinstance(bounds, Bounds):
            if _holds_numbers(fn):
                raise ValueError(
                    "bounds must be a function of fn, as lambda fn: jnode.Bounds(...), "
                    "since fn holds numbers that may change: plain bounds would stay "
                    "as they are."
                )
            bounds = _Constant.of(bounds)
        elif not callable(bounds):
            raise TypeError(
                "bounds must be a function of fn that gives jnode.Bounds, or such "
                f"bounds, not {type(bounds).__name__}."
            )
        elif _holds_numbers(bounds):
            raise ValueError(
                "bounds must be a function of fn alone, not one that holds numbers of "
                "its own: they would not change with fn."
            )
        self.fn, self.claim = fn, bounds

    def __call__(self, t: Any, y: PyTree, args: Any = None) -> PyTree:
        """**Raises:** `ValueError` for a value of another shape than the state's, which
        a solver would spread over the state, so that the bounds would not hold."""
        value = self.fn(t, y, args)
        shapes = [jax.tree.map(jnp.shape, x) for x in (value, y)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"fn must return a value of the state's shape {shapes[1]}, to which "
                f"its bounds refer, not {shapes[0]}."
            )
        return value

    def bounds(self) -> Bounds:
        """**Raises:** `TypeError` if the function returned something other than
        `Bounds`."""
        found = self.claim(self.fn)
        if not isinstance(found, Bounds):
            raise TypeError(
                f"bounds must give jnode.Bounds, not {type(found).__name__}."
            )
        return found


def _holds_numbers(x: Any) -> bool:
    return bool(jax.tree.leaves(eqx.filter(x, eqx.is_inexact_array_like)))


class _Constant(eqx.Module):
    """Bounds as static numbers, which no transformation of arrays changes."""

    numbers: tuple[float, float, float, float] = eqx.field(static=True)

    @classmethod
    def of(cls, bounds: Bounds) -> "_Constant":
        values = (bounds.lipschitz, *bounds.log_norm, bounds.cocoercivity)
        lipschitz, low, high, c = (float(x) for x in values)
        return cls((lipschitz, low, high, c))

    def __call__(self, fn: Any) -> Bounds:
        lipschitz, low, high, c = self.numbers
        return Bounds(lipschitz, (low, high), c)
