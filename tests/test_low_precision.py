"""Products in bfloat16, all else in float32."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import jnode
from jnode.fields import LowPrecisionField
from jnode.solvers import solve_batch
from tests.helpers import slow_but

FIELDS = {
    "ortho": lambda key: jnode.OrthoField((3, 3, 4), time=True, key=key),
    "gradient_flow": lambda key: jnode.GradientFlowField((12,), key=key),
    "free": lambda key: jnode.FreeField((3, 3, 4), key=key),
}
SHAPES = {"ortho": (3, 3, 4), "gradient_flow": (12,), "free": (3, 3, 4)}


@pytest.mark.parametrize("kind", slow_but(FIELDS, "ortho"))
@pytest.mark.slow
def test_solves_nearly_as_well_and_all_weights_learn(getkey, kind):
    field = FIELDS[kind](getkey())
    low = LowPrecisionField(field)
    y = jr.normal(getkey(), (3, *SHAPES[kind]))
    solvers = [jnode.Solver("rk4", steps=2)]
    if kind == "gradient_flow":
        solvers.append(jnode.Solver("tsit5", rtol=1e-2))
    for solver in solvers:
        exact, found = (solve_batch(f, y, solver).y for f in (field, low))
        assert found.dtype == jnp.float32
        away = jnp.max(jnp.abs(found - exact)) / jnp.max(jnp.abs(exact))
        assert 1e-5 < away < 2e-2
    solver = jnode.Solver("rk4", steps=2)
    grad = lambda f: eqx.filter_grad(
        lambda f: jnp.sum(solve_batch(f, y, solver).y ** 2)
    )(f)
    exact, found = (jax.tree.leaves(grad(f)) for f in (field, low))
    for a, b in zip(exact, found, strict=True):
        assert b.dtype == jnp.float32
        assert jnp.linalg.norm(a - b) <= 0.05 * jnp.linalg.norm(a) + 1e-3


def test_products_are_short_and_sums_are_not(getkey):
    low = LowPrecisionField(FIELDS["gradient_flow"](getkey())).bake()
    text = str(jax.make_jaxpr(lambda y: low(0.0, y))(jnp.ones(12)))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all("bf16" in line for line in products)
    assert not any("bf16" in line for line in text.splitlines() if "= max" in line)


def test_nothing_is_certified(getkey):
    low = LowPrecisionField(FIELDS["gradient_flow"](getkey()))
    assert jnp.isinf(low.lipschitz()) and jnp.isinf(low.log_norm())
    solver = jnode.Solver("euler", steps=4)
    assert jnp.isinf(jnode.certify.amplification(low, solver))


def test_refusals(getkey):
    field = FIELDS["gradient_flow"](getkey())
    with pytest.raises(ValueError, match="dtype must be one of bfloat16, float16"):
        LowPrecisionField(field, "int8")


def test_pieces_take_part(getkey):
    segments = jnode.PiecewiseField([FIELDS["gradient_flow"](getkey()) for _ in "ab"])
    low = LowPrecisionField(segments)
    text = str(jax.make_jaxpr(lambda y: low(0.7, y))(jnp.ones(12)))
    assert "bf16" in text
    y = jr.normal(getkey(), (12,))
    difference = jnp.abs(low(0.7, y) - segments(0.7, y)).max()
    assert 0 < difference < 0.05
