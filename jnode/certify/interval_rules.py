"""The effect of each operation of a jaxpr on enclosures.

`RULES` has a function for each operation's name: it takes the arithmetic, the equation
and its arguments, and returns the results. `MOVING` and `JOINING` only move numbers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jnode.certify.enclosures import ULPS, Arithmetic, Enclosure
from jnode.linear import convolve
from jnode.linear.products import training_precision

# The results of these consist of entries of their first argument.
_ORDERED = ("reshape", "squeeze", "expand_dims", "copy", "copy_p", "stop_gradient")
MOVING = (
    *_ORDERED,
    "broadcast_in_dim",
    "dynamic_slice",
    "gather",
    "rev",
    "slice",
    "split",
    "tile",
    "transpose",
    "unstack",
)
JOINING = ("concatenate", "stack")
# Of these they are entries too, the largest or the smallest of several.
_ORDERING = (
    "cummax",
    "cummin",
    "reduce_max",
    "reduce_min",
    "reduce_window_max",
    "sort",
)
# Images by batch, height, width, channels; kernels by height, width, in, out.
_ORDER = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
_ELEMENTARY = tuple(name for name in ULPS if name not in ("sin", "cos", "softplus"))


class Unknown:
    """Booleans or integers that depend on the input, so that their values are
    unknown."""


Value = Any  # an array, an Enclosure or Unknown


def refusal(name: str) -> ValueError:
    """The error for an operation without a rule."""
    return ValueError(
        f"The model cannot be enclosed: there is no rule for the operation {name!r} on "
        "numbers that depend on the image (see jnode/certify/interval_rules.py)."
    )


def is_plain(x: Value) -> bool:
    """Whether a value is a plain array, exact and independent of the input."""
    return not isinstance(x, (Enclosure, Unknown))


def lifted(x: Value) -> Enclosure:
    """A plain array as an enclosure."""
    if isinstance(x, Enclosure):
        return x
    return Enclosure(jnp.asarray(x)[None], None, (), False)


def is_float(x: Any) -> bool:
    """Whether an array or a dtype is floating-point."""
    if jnp.issubdtype(getattr(x, "dtype", x), jax.dtypes.extended):
        return False  # the keys of random numbers
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def bind(eqn: Any, *args: Any) -> list[Array]:
    """The results of the operation itself."""
    outs = eqn.primitive.bind(*args, **eqn.params)
    return list(outs) if eqn.primitive.multiple_results else [outs]


def _single(eqn: Any) -> Callable[..., Array]:
    """The operation itself, if it has one result."""
    return lambda *args: bind(eqn, *args)[0]


def widens(old: Any, new: Any) -> bool:
    """Whether every number of the old floating dtype is one of the new dtype."""
    floats = is_float(old) and is_float(new)
    return floats and jnp.finfo(new).nmant >= jnp.finfo(old).nmant


def _moving(arithmetic, eqn, args):
    x, *rest = args
    if not isinstance(x, Enclosure) or not all(is_plain(i) for i in rest):
        raise refusal(f"{eqn.primitive.name} at places that depend on the image")
    # A reshape in Fortran's order exchanges axes first.
    turned = eqn.primitive.name == "reshape" and eqn.params["dimensions"] is not None
    ordered = eqn.primitive.name in _ORDERED and not turned
    if eqn.primitive.name == "gather":
        zeros = eqn.params | {"fill_value": 0}
        blank = lambda a: eqn.primitive.bind(a, *rest, **zeros)  # noqa: E731
        return [_filled(arithmetic, lambda a: bind(eqn, a, *rest)[0], blank, x)]
    return [
        arithmetic.moved(lambda a, k=k: bind(eqn, a, *rest)[k], x, ordered=ordered)
        for k in range(len(eqn.outvars))
    ]


def _filled(arithmetic, function, blank, x):
    """What moves entries and fills in numbers of its own, which are the same for every
    image; `blank` fills in zeros."""
    centre = jax.vmap(function)(x.centre)
    return arithmetic.moved(blank, x)._replace(centre=centre)


def _joining(arithmetic, eqn, args):
    return [arithmetic.joined(_single(eqn), [lifted(x) for x in args])]


def _pad(arithmetic, eqn, args):
    x, value = lifted(args[0]), args[1]
    if not is_plain(value):
        raise refusal("pad with what depends on the image")
    filled, blank = (
        lambda a, v=v: bind(eqn, a, v)[0] for v in (value, jnp.zeros_like(value))
    )
    return [_filled(arithmetic, filled, blank, x)]


def _select(arithmetic, eqn, args):
    which, *cases = args
    cases = [lifted(x) for x in cases]
    if isinstance(which, Unknown):
        hull = cases[0]
        for case in cases[1:]:
            hull = arithmetic.hull(hull, case)
        return [hull]
    return [arithmetic.joined(lambda *xs: bind(eqn, which, *xs)[0], cases)]


def _convert(arithmetic, eqn, args):
    x, new = args[0], eqn.params["new_dtype"]
    if not isinstance(x, Enclosure):
        raise refusal(f"conversion to {jnp.dtype(new).name}")
    return [arithmetic.moved(_single(eqn), x)]


def _add(arithmetic, eqn, args):
    x, y = (lifted(a) for a in args)
    if eqn.primitive.name == "sub":
        y = arithmetic.negative(y)
    return [arithmetic.add(jnp.add, x, y)]


def _product(arithmetic, eqn, args):
    x, y = (lifted(a) for a in args)
    name, params, length = eqn.primitive.name, eqn.params, 1
    asked = params.get("precision")
    asked = set(asked) if isinstance(asked, tuple) else {asked}
    if arithmetic.outward and not asked <= {None, jax.lax.Precision.HIGHEST}:
        raise refusal(f"{name} in less than full precision")
    shapes = [v.aval.shape for v in eqn.invars]
    if name == "dot_general":
        for axis in params["dimension_numbers"][0][0]:
            length *= shapes[0][axis]
    if name == "conv_general_dilated":
        kernel = params["dimension_numbers"].rhs_spec
        length = int(np.prod(shapes[1])) // shapes[1][kernel[0]]
        if params["batch_group_count"] != 1:
            raise refusal("convolution with batch groups")
    form = partial(_full, eqn)
    if name == "conv_general_dilated" and _is_ordered(params):
        form = _together(eqn)
    return [arithmetic.bilinear(form, x, y, length)]


def _is_ordered(params: dict) -> bool:
    """Whether a convolution is one of those that `jnode.linear.convolve` computes."""
    ones = (params["feature_group_count"], *params["lhs_dilation"])
    ones = (*ones, *params["rhs_dilation"])
    return params["dimension_numbers"] == _ORDER and set(ones) == {1}


def _together(eqn: Any) -> Callable[[Array, Array], Array]:
    """The convolution, which `jax.vmap` applies to all images together: training is a
    loop, in which the derivatives of single ones are many times slower on CPU."""
    single = partial(_full, eqn)
    form = jax.custom_batching.custom_vmap(single)
    window = eqn.params["window_strides"], eqn.params["padding"]

    @form.def_vmap
    def mapped(size, moves, a, b):
        if moves != [True, False]:
            return jax.vmap(single, [0 if each else None for each in moves])(a, b), True
        with training_precision("highest"):
            out = convolve(a.reshape(-1, *a.shape[2:]), b, *window)
        return out.reshape(size, -1, *out.shape[1:]), True

    return form


def _full(eqn: Any, a: Array, b: Array) -> Array:
    """A product in full precision, whatever precision the model requests."""
    params = dict(eqn.params)
    if "precision" in params:
        params["precision"] = (jax.lax.Precision.HIGHEST,) * 2
    return eqn.primitive.bind(a, b, **params)


def _divide(arithmetic, eqn, args):
    x, y = (lifted(a) for a in args)
    return [arithmetic.bilinear(jnp.multiply, x, arithmetic.reciprocal(y), 4)]


def _sum(arithmetic, eqn, args):
    shape, params = eqn.invars[0].aval.shape, eqn.params
    if eqn.primitive.name == "reduce_window_sum":
        length = int(np.prod(params["window_dimensions"]))
    elif eqn.primitive.name == "cumsum":
        length = shape[params["axis"]]
    else:
        length = int(np.prod([shape[axis] for axis in params["axes"]]))
    return [arithmetic.total(_single(eqn), lifted(args[0]), length)]


def _monotone(arithmetic, eqn, args):
    x, ulps = lifted(args[0]), ULPS[eqn.primitive.name]
    return [arithmetic.monotone(_single(eqn), x, ulps)]


def _ordering(arithmetic, eqn, args):
    if len(args) != 1:
        raise refusal(f"{eqn.primitive.name} of several arrays")
    return [arithmetic.ordering(_single(eqn), lifted(args[0]))]


def _both(arithmetic, eqn, args):
    return [arithmetic.both(_single(eqn), *(lifted(x) for x in args))]


def _wave(arithmetic, eqn, args):
    return [arithmetic.wave(_single(eqn), lifted(args[0]), ULPS[eqn.primitive.name])]


def _polynomial(arithmetic, eqn, args):
    """By Horner's rule, as JAX computes it; the coefficients in ascending order."""
    x, *rest, out = (lifted(a) for a in args)
    for c in reversed(rest):
        out = arithmetic.add(jnp.add, arithmetic.bilinear(jnp.multiply, out, x, 1), c)
    return [out]


def _power(arithmetic, eqn, args):
    x, power = lifted(args[0]), eqn.params.get("y", 2)
    if power < 0:
        raise refusal(f"power of {power}")
    x = arithmetic.absolute(x) if power % 2 == 0 else x
    # Rounded at most twice for each factor; 1 - x^2, which is (1 + x) (1 - x), thrice.
    return [arithmetic.monotone(_single(eqn), x, 2 * power)]


RULES: dict[str, Callable[[Arithmetic, Any, list[Value]], list[Value]]] = {
    **dict.fromkeys(MOVING, _moving),
    **dict.fromkeys(JOINING, _joining),
    **dict.fromkeys(_ELEMENTARY, _monotone),
    **dict.fromkeys(_ORDERING, _ordering),
    **dict.fromkeys(("reduce_sum", "reduce_window_sum", "cumsum"), _sum),
    **dict.fromkeys(("add", "sub", "add_any"), _add),
    **dict.fromkeys(("mul", "dot_general", "conv_general_dilated"), _product),
    **dict.fromkeys(("integer_pow", "square", "one_minus_square"), _power),
    **dict.fromkeys(("max", "min"), _both),
    **dict.fromkeys(("sin", "cos"), _wave),
    "abs": lambda arithmetic, eqn, args: [arithmetic.absolute(args[0])],
    "neg": lambda arithmetic, eqn, args: [arithmetic.negative(args[0])],
    "convert_element_type": _convert,
    "div": _divide,
    "pad": _pad,
    "polynomial": _polynomial,
    "select_n": _select,
}
