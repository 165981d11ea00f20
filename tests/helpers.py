"""What several tests need."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jnode


def dense_matrix(map_, shape):
    """A linear map on states of this shape, materialised on the identity basis."""
    n = int(np.prod(shape))
    basis = jnp.eye(n).reshape(n, *shape)
    # One compilation rather than one of each operation.
    apply = jax.jit(lambda basis: jax.vmap(map_)(basis).reshape(n, -1).T)
    return np.asarray(apply(basis), np.float64)


def singular_values(map_, shape):
    """By dense SVD in float64."""
    return np.linalg.svd(dense_matrix(map_, shape), compute_uv=False)


def small_model(key, field="gradient_flow", solver=None, **kwargs):
    """An 8x8 grey image classifier with 4 classes that compiles in a second."""
    default = jnode.Solver("euler" if field == "gradient_flow" else "rk4", steps=2)
    config = jnode.ModelConfig(field=field, features=4, patch=2, **kwargs)
    return jnode.build(
        config, solver or default, image_shape=(8, 8, 1), classes=4, key=key
    )


@contextlib.contextmanager
def compilations():
    """A list that grows by one with each program that XLA compiles."""
    seen = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def slow_but(values, *quick, unpack=False):
    """Values of a parametrised test, of which all but the quick ones are slow.

    `unpack` where each is a tuple of several arguments.
    """
    assert all(value in list(values) for value in quick)
    mark = lambda value: pytest.param(
        *(value if unpack else [value]), marks=pytest.mark.slow
    )
    return [value if value in quick else mark(value) for value in values]


CONV_ORDER = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
"""The order of axes in which convolutions are fast on CPU, as StableHLO writes it."""


def conv_orders(function, *args):
    """The order of axes of each convolution of a program; or "grouped"."""
    text = jax.jit(function).lower(*args).as_text()
    lines = [x for x in text.splitlines() if "stablehlo.convolution" in x]
    order = re.compile(r"dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])")
    grouped = re.compile(r"group_count = (?!1 )")
    return ["grouped" if grouped.search(x) else order.findall(x)[0] for x in lines]
