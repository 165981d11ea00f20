"""The arithmetic in which a certificate is computed, and its assumptions."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

import equinox as eqx
import jax
from jax.core import Tracer
from jaxtyping import PyTree

from jnode._batches import check_pixels
from jnode.activations import Elementwise, is_known
from jnode.bounds import unit_roundoff
from jnode.constraints import AbstractConstraint
from jnode.fields.certified import Certified
from jnode.linear.products import training_precision

if TYPE_CHECKING:
    from jnode.models import ODEBlock


def check_certifiable(model: PyTree, images: PyTree = None) -> None:
    """Raises `TypeError` for a model that is no `ODEClassifier`, for pixels that are no
    floats, and for a dtype in which nothing can be certified.

    Integer arrays of a model are not checked.
    """
    if not hasattr(model, "head"):
        raise TypeError(
            f"model must be a jnode.ODEClassifier, not {type(model).__name__}: "
            "jnode.certify.smooth_certify certifies any classifier."
        )
    for pixels in jax.tree.leaves(images):
        check_pixels(pixels)
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    for leaf in (*leaves, *jax.tree.leaves(images)):
        unit_roundoff(leaf.dtype)


def is_block(layer: Any, model: Any) -> TypeGuard["ODEBlock"]:
    """Whether this layer of a model is one of its ODE blocks."""
    return any(layer is block for block in model.blocks)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Makes all matrix products full precision, including a user's own.

    By default JAX multiplies float32 arrays in TF32 on GPUs from Ampere on, and in
    bfloat16 on TPUs.
    """
    with jax.default_matmul_precision("highest"), training_precision("highest"):
        yield


def certifying(function: Callable) -> Callable:
    """The function in full precision. Where the default backend is a TPU, whose float32
    products consist of bfloat16 ones, it runs on the host's CPU with the same weights.

    Inside a traced function the caller chooses the device.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with full_precision():
            leaves = jax.tree.leaves((args, kwargs))
            traced = any(isinstance(x, Tracer) for x in leaves)
            if traced or jax.default_backend() != "tpu":
                return function(*args, **kwargs)
            host = jax.devices("cpu")[0]
            # Not NumPy's arrays, which hold the exact times of steps.
            on_device = lambda x: isinstance(x, jax.Array)  # noqa: E731
            move = lambda x: jax.device_put(x, host) if on_device(x) else x  # noqa: E731
            args, kwargs = jax.tree.map(move, (args, kwargs))
            with jax.default_device(host):
                return function(*args, **kwargs)

    return wrapped


def arithmetic() -> dict[str, str]:
    """The arithmetic of a certificate, as it is recorded in it."""
    backend = jax.default_backend()
    return {
        "backend": "cpu" if backend == "tpu" else backend,
        "matmul_precision": "highest",
    }


def assumptions(model: PyTree) -> list[str]:
    """The assumptions of a certificate of the model, one sentence each.

    Bounds of `jnode.Certified` fields, and of fields, maps, constraints and activations
    from other packages, are claims that this package does not verify.
    """
    found = []

    def visit(x):
        kind = type(x)
        if isinstance(x, Certified):
            name = getattr(x.fn, "__name__", type(x.fn).__name__)
            found.append(f"the bounds of the field {name} are as its author claims")
        elif isinstance(x, Elementwise) and not is_known(x):
            name = getattr(x.function, "__name__", type(x.function).__name__)
            found.append(
                f"the slopes of the activation {name} are as its author claims"
            )
        elif _foreign(kind) and (
            isinstance(x, AbstractConstraint)
            or any(hasattr(x, name) for name in ("bounds", "lipschitz", "norm"))
        ):
            found.append(f"the bounds of {kind.__name__} are as its author claims")
        children = jax.tree.leaves(x, is_leaf=lambda y: y is not x)
        if len(children) != 1 or children[0] is not x:
            for child in children:
                visit(child)

    visit(model)
    return list(dict.fromkeys(found))


def _foreign(kind: Any) -> bool:
    return issubclass(kind, eqx.Module) and kind.__module__.split(".")[0] not in (
        "jnode",
        "equinox",
    )
