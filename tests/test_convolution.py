"""Convolutions of one order of axes."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jnode.linear.conv import Conv, convolve, forward_mode
from tests.helpers import CONV_ORDER, conv_orders

FORMS = [
    ((1, 1), ((1, 1), (1, 1))),
    ((2, 1), ((1, 0), (2, 1))),
    ((2, 2), ((0, 0),) * 2),
]


def by_lax(x, kernel, stride, padding):
    """The same, with channels first."""
    x, kernel = x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1)
    return jax.lax.conv_general_dilated(x, kernel, stride, padding).transpose(
        0, 2, 3, 1
    )


@pytest.mark.parametrize(("stride", "padding"), FORMS)
def test_values_and_derivatives_are_those_of_lax(getkey, stride, padding):
    x, dx = jr.normal(getkey(), (2, 20, 6, 7, 3))
    kernel, dkernel = jr.normal(getkey(), (2, 4, 3, 3, 5))
    ours = lambda x, k: convolve(x, k, stride, padding)
    theirs = lambda x, k: by_lax(x, k, stride, padding)
    out, pull = jax.vjp(ours, x, kernel)
    expected, their_pull = jax.vjp(theirs, x, kernel)
    g = jr.normal(getkey(), out.shape)
    pushed = jax.jvp(theirs, (x, kernel), (dx, dkernel))[1]
    hessian = lambda f: jax.jvp(
        jax.grad(lambda *a: jnp.sum(f(*a) ** 3), (0, 1)), (x, kernel), (dx, dkernel)
    )[1]
    with forward_mode():
        ordered = jax.jvp(ours, (x, kernel), (dx, dkernel))[1]
    for found, right in (
        (out, expected),
        (pull(g), their_pull(g)),
        (jax.jvp(ours, (x, kernel), (dx, dkernel))[1], pushed),
        (ordered, pushed),
        (hessian(ours), hessian(theirs)),
        (jax.vmap(ours, (0, None))(x[:, None], kernel)[:, 0], expected),
    ):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
            scale = float(jnp.abs(b).max())
            np.testing.assert_allclose(a, b, atol=1e-5 * scale)


@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
@pytest.mark.parametrize("mapped", [False, True])
def test_all_convolutions_of_a_loop_and_its_gradient_have_the_order(stride, mapped):
    kernel, x = jnp.ones((3, 3, 2, 2)), jnp.ones((4, 8, 8, 2))

    def one(kernel, x):
        def body(total, _):
            return total + jnp.sum(convolve(x + total, kernel, stride) ** 2), None

        return jax.lax.scan(body, 0.0, length=2)[0]

    def loss(kernel, x):
        if mapped:
            return jnp.sum(jax.vmap(one, (None, 0))(kernel, x[:, None]))
        return one(kernel, x)

    found = conv_orders(jax.grad(loss, (0, 1)), kernel, x)
    assert len(found) == 3 and set(found) == {CONV_ORDER}

    def push(kernel, x):
        with forward_mode():
            return jax.jvp(loss, (kernel, x), (kernel, x))[1]

    found = conv_orders(push, kernel, x)
    assert len(found) == 3 and set(found) == {CONV_ORDER}


def test_one_tap_is_a_matrix_product(getkey):
    kernel, x = jr.normal(getkey(), (1, 1, 3, 5)), jr.normal(getkey(), (4, 6, 7, 3))
    ours = lambda kernel, x: jax.vmap(Conv(kernel))(x)
    assert not conv_orders(ours, kernel, x)
    expected = by_lax(x, kernel, (1, 1), ((0, 0),) * 2)
    np.testing.assert_allclose(ours(kernel, x), expected, atol=1e-5)
