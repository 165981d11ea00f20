"""Encloses any function, by evaluating its jaxpr with arithmetic on sets.

The enclosed program is the one that JAX would run: the steps of the solver, in the form
that the solver chooses, through any fields and layers. An array that does not depend on
the input, such as a weight, is a plain array. Values that depend on the input, or that
were computed from weights with rounding, are `Enclosure`s. An operation without a rule
is an error.

At the start of each iteration of a `scan` the state is widened to intervals. The last
iteration is evaluated separately, so that the operations after it compose with it.
"""

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Literal
from jaxtyping import Array

from jnode.certify.enclosures import ULPS, Arithmetic, Enclosure
from jnode.certify.interval_rules import (
    JOINING,
    MOVING,
    RULES,
    Unknown,
    Value,
    bind,
    is_float,
    is_plain,
    lifted,
    refusal,
    widens,
)

# Calls that evaluate the jaxpr in this parameter.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
_EXACTLY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}


def enclose(
    arithmetic: Arithmetic, function: Callable[[Array], Array], x: Enclosure
) -> Enclosure:
    """An enclosure of `function` of each image, given an enclosure of the image.

    **Raises:** `ValueError` that names the operation, for a function with an operation
    without a rule.
    """
    closed = jax.make_jaxpr(function)(x.centre[0])
    (out,) = _run(arithmetic, closed.jaxpr, closed.consts, [x])
    return lifted(out)


def _run(
    arithmetic: Arithmetic, jaxpr: Any, consts: Sequence[Any], args: Sequence[Value]
) -> list[Value]:
    env: dict[Any, Value] = {}
    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(var):
        return var.val if isinstance(var, Literal) else env[var]

    for eqn in _needed(jaxpr):
        outs = _apply(arithmetic, eqn, [read(var) for var in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _needed(jaxpr: Any) -> list[Any]:
    """The equations on which a result depends."""
    wanted, kept = {id(v) for v in jaxpr.outvars}, []
    for eqn in reversed(jaxpr.eqns):
        if any(id(v) in wanted for v in eqn.outvars):
            kept.append(eqn)
            wanted.update(id(v) for v in eqn.invars)
    return kept[::-1]


def _apply(arithmetic: Arithmetic, eqn: Any, args: list[Value]) -> list[Value]:
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS:
        return _call(arithmetic, name, params[_CALLS[name]], params, args)
    if name == "scan":
        return _scan(arithmetic, params, args)
    if name == "cond":
        return _choose(arithmetic, params, args)
    if name == "platform_index":
        return [_platform(params["platforms"])]
    if all(is_plain(x) for x in args):
        found = _of_plain(eqn, args)
        if found is not None:
            return found
    if not any(is_float(v.aval.dtype) for v in eqn.outvars):
        return [Unknown()] * len(eqn.outvars)
    dtypes = [[v.aval.dtype for v in some] for some in (eqn.invars, eqn.outvars)]
    for old, new in itertools.product(*dtypes):
        if is_float(old) and is_float(new) and not widens(old, new):
            raise refusal(f"{name} from {old.name} to {new.name}")
    rule = RULES.get(name)
    unknown = any(isinstance(x, Unknown) for x in args)
    if rule is None or (unknown and name != "select_n"):
        raise refusal(name)
    return rule(arithmetic, eqn, args)


def _of_plain(eqn: Any, args: list[Any]) -> list[Any] | None:
    """The exact results of plain arrays; `None` if rounding could matter."""
    name = eqn.primitive.name
    known = not any(isinstance(x, Tracer) for x in args)
    if name in _EXACTLY and known and all(_is_number(x) for x in args):
        return _exactly(eqn, args)
    longer = name == "convert_element_type" and not _narrows(eqn, args[0], known)
    integers = not any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars)
    exact = (*MOVING, *JOINING, "neg", "select_n", "pad", "iota", "abs", "max", "min")
    if not (integers or longer or name in exact):
        return None
    if known:
        with jax.ensure_compile_time_eval():
            return bind(eqn, *args)
    return bind(eqn, *args)


def _is_number(x: Any) -> bool:
    return np.size(x) == 1 and is_float(x) and bool(np.all(np.isfinite(x)))


def _exactly(eqn: Any, args: list[Any]) -> list[Any] | None:
    """The result for single numbers, if it is exact; else `None`."""
    a, b = (Fraction(float(np.asarray(x).item())) for x in args)
    if eqn.primitive.name == "div" and b == 0:
        return None
    exact = _EXACTLY[eqn.primitive.name](a, b)
    (out,) = eqn.outvars
    value = np.full(out.aval.shape, float(exact), out.aval.dtype)
    return [value] if Fraction(float(value.item())) == exact else None


def _narrows(eqn: Any, x: Any, known: bool) -> bool:
    """Whether a conversion of plain numbers may round."""
    old, new = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
    if is_float(old) or not is_float(new):
        return not widens(old, new)
    return not known or bool(np.max(np.abs(x), initial=0) > 2 ** jnp.finfo(new).nmant)


def _call(arithmetic, name, inner, params, args):
    if params.get("name") == "softplus" and len(args) == 1 and not is_plain(args[0]):
        known = jax.make_jaxpr(jax.nn.softplus)(args[0].centre[0])
        if str(known.eqns[0].params["jaxpr"]) == str(inner):
            softplus = lambda x: jax.nn.softplus(x)  # noqa: E731
            return [arithmetic.monotone(softplus, args[0], ULPS["softplus"])]
    jaxpr, consts = (
        (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
    )
    return _run(arithmetic, jaxpr, consts, args)


def _platform(platforms: Sequence[Any]) -> int:
    """Which branch runs where the certificate is computed (on CPU in place of TPUs)."""
    here = jax.default_backend()
    here = "cpu" if here == "tpu" else here
    for index, names in enumerate(platforms):
        if names is None or here in names:
            return index
    raise ValueError(f"The model has no code for the platform {here!r}.")


def _choose(arithmetic, params, args):
    """The results of the branches; those that only raise an error are ignored."""
    index, *rest = args
    if is_plain(index) and not isinstance(index, Tracer):
        branches = [params["branches"][int(index)]]
    else:
        branches = [x for x in params["branches"] if not _raises(x.jaxpr)]
    if len(branches) > 1:
        raise ValueError(
            "The model cannot be enclosed: which branch of a cond runs depends on its "
            "input, or on the counter of a loop; use jnp.where."
        )
    (branch,) = branches
    return _run(arithmetic, branch.jaxpr, branch.consts, rest)


def _raises(jaxpr: Any) -> bool:
    """Whether a branch is that of `equinox.error_if`, which never returns."""

    def is_error(eqn):
        if eqn.primitive.name != "pure_callback":
            return False
        function = getattr(eqn.params["callback"], "callback_func", None)
        return getattr(function, "__module__", None) == eqx.error_if.__module__

    return bool(jaxpr.eqns) and all(is_error(eqn) for eqn in jaxpr.eqns)


def _scan(arithmetic, params, args):
    closed, length = params["jaxpr"], params["length"]
    if params["reverse"] or length == 0:
        raise refusal("scan, backwards or of no trips")
    n, m = _consts_and_carry(params)
    held, carry, moving = args[:n], args[n : n + m], args[n + m :]
    # Each trip reads other rows of a symbol's matrix, which the loop cannot choose.
    moving = [
        arithmetic.collapsed(x) if isinstance(x, Enclosure) else x for x in moving
    ]

    def trip(carry, xs):
        outs = _run(arithmetic, closed.jaxpr, closed.consts, [*held, *carry, *xs])
        return outs[:m], outs[m:]

    batch = max((len(x.centre) for x in args if isinstance(x, Enclosure)), default=1)
    floats = [is_float(v.aval.dtype) for v in closed.jaxpr.invars[n : n + m]]

    def packed(carry):
        whole = [lifted(x) if f else x for x, f in zip(carry, floats, strict=True)]
        return [_kept(arithmetic, x, batch) for x in whole]

    def unpacked(carry):
        opened = lambda x: arithmetic.opened(Enclosure(*x))  # noqa: E731
        return [opened(x) if f else x for x, f in zip(carry, floats, strict=True)]

    before: list[Any] = []
    if length > 1:

        def body(carry, index):
            carry, ys = trip(unpacked(carry), [_at(x, index) for x in moving])
            return packed(carry), [_kept(arithmetic, y, batch) for y in ys]

        carry, before = jax.lax.scan(body, packed(carry), jnp.arange(length - 1))
        carry = unpacked(carry)
    carry, ys = trip(carry, [_at(x, length - 1) for x in moving])
    outs = [_stacked(arithmetic, before, k, y, batch) for k, y in enumerate(ys)]
    return [*carry, *outs]


def _consts_and_carry(params) -> tuple[int, int]:
    """How many of a scan's arguments are constants, and how many the carry."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # since JAX 0.11
    return len(list(consts)), len(list(carry))


def _at(x: Value, index: Any) -> Value:
    """The part of a scan's input that one iteration reads."""
    if isinstance(x, Unknown):
        raise refusal("scan over comparisons")
    if isinstance(x, Enclosure):
        error = None if x.error is None else x.error[:, index]
        return Enclosure(x.centre[:, index], error, (), x.moves)
    return jnp.asarray(x)[index]


def _kept(arithmetic: Arithmetic, x: Value, batch: int) -> Any:
    """The arrays that represent a value."""
    if is_plain(x):
        return jnp.asarray(x)
    if isinstance(x, Unknown):
        raise refusal("scan over comparisons")
    centre, error = x.centre, arithmetic.reach(x)
    spread = lambda a: jnp.broadcast_to(a, (batch, *a.shape[1:]))  # noqa: E731
    return spread(centre), spread(error)


def _stacked(arithmetic, before, k, last, batch):
    """The results of all iterations, of which the last was evaluated separately."""
    kept = _kept(arithmetic, last, batch)
    if isinstance(kept, tuple):
        if not before:
            return Enclosure(kept[0][:, None], kept[1][:, None])
        join = lambda a, b: jnp.concatenate(  # noqa: E731
            [jnp.moveaxis(a, 0, 1), b[:, None]], axis=1
        )
        return Enclosure(join(before[k][0], kept[0]), join(before[k][1], kept[1]))
    return jnp.concatenate([before[k], kept[None]]) if before else kept[None]
