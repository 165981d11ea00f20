"""Vector fields: their bounds hold, `bake` changes nothing, Diffrax takes them."""

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode.activations import ACTIVATIONS, MONOTONE, make_activation
from jnode.certify import strongest_stretch

FIELDS = {
    "ortho": lambda s, k: jnode.OrthoField(s, lipschitz=1.5, hidden=6, key=k),
    "ortho tanh": lambda s, k: jnode.OrthoField(s, activation="tanh", key=k),
    "ortho maxmin": lambda s, k: jnode.OrthoField(s, activation="maxmin", key=k),
    "flow": lambda s, k: jnode.GradientFlowField(s, lipschitz=3.0, key=k),
    "flow wide": lambda s, k: jnode.GradientFlowField(s, hidden=8, key=k),
    "free": lambda s, k: jnode.FreeField(s, time=True, group_norm=True, key=k),
    "free circular": lambda s, k: jnode.FreeField(s, padding="circular", key=k),
}
SHAPES = [(4,), (3, 4, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FIELDS)
def test_bake_and_diffrax(getkey, name, shape):
    field = FIELDS[name](shape, getkey())
    y = jr.normal(getkey(), shape)
    baked = field.bake()
    assert jnp.abs(field(0.3, y) - baked(0.3, y)).max() < 1e-6
    # No reparametrisation is left: the jaxpr of the baked field is the shorter one.
    count = lambda f: str(jax.make_jaxpr(f)(0.3, y)).count("dot_general")
    assert count(baked) <= 6
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(baked), diffrax.Heun(), 0.0, 1.0, 0.5, y
    )
    ours = jnode.solve(field, y, jnode.Solver("heun", steps=2))
    assert jnp.abs(solution.ys[-1] - ours.y).max() < 1e-5


@pytest.mark.parametrize("name", [n for n in FIELDS if not n.startswith("free")])
def test_bounds_hold(getkey, x64, name):
    field = FIELDS[name]((3, 4, 4), getkey())
    field = jax.tree.map(lambda w: w.astype(jnp.float32), field).bake()
    # What was certified is the field with float32 weights; float64 shows what it is.
    bound, mu = float(field.lipschitz()), float(field.log_norm())
    c = float(field.cocoercivity())
    field = jax.tree.map(lambda w: w.astype(jnp.float64), field)
    f = jax.jit(lambda y: field(0.0, y))
    for _ in range(3):
        y = jr.normal(getkey(), (3, 4, 4))
        assert strongest_stretch(f, y, key=getkey()) <= bound
        jacobian = np.asarray(jax.jacobian(f)(y)).reshape(48, 48)
        symmetric = (jacobian + jacobian.T) / 2
        assert np.linalg.eigvalsh(symmetric)[-1] <= mu + 1e-12
        z = y + jr.normal(getkey(), y.shape)
        df, dy = f(y) - f(z), y - z
        assert jnp.sum(df * dy) <= -c * jnp.sum(df**2) + 1e-9 or c == 0


def test_free_field_claims_nothing(getkey):
    field = jnode.FreeField((4,), key=getkey())
    assert field.lipschitz() == field.log_norm() == jnp.inf
    assert field.cocoercivity() == 0


def test_learnable_scale_stays_below_its_cap(getkey):
    field = jnode.OrthoField((4,), lipschitz=2.0, learnable=True, key=getkey())
    pushed = jax.tree.map(lambda w: w + 50.0, field.scale)
    assert 0 < field.scale(jnp.float32) < 2
    assert pushed(jnp.float32) <= 2
    y = jnp.ones(4)
    grad = jax.grad(lambda f: jnp.sum(f(0.0, y) ** 2))(field)
    assert grad.scale.raw != 0


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_1_lipschitz(getkey, name):
    f = make_activation(name, 8)
    x, z = jr.normal(getkey(), (2, 100, 8))
    stretch = jnp.linalg.norm(f(x) - f(z), axis=1) / jnp.linalg.norm(x - z, axis=1)
    assert stretch.max() <= 1 + 1e-6
    if name in MONOTONE:
        assert ((f(x) - f(z)) * (x - z)).min() >= 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda k: jnode.OrthoField((4, 4), key=k), "shape must be"),
        (lambda k: jnode.OrthoField((4,), lipschitz=0.0, key=k), "positive finite"),
        (lambda k: jnode.OrthoField((4,), activation="gelu", key=k), "relu, tanh"),
        (lambda k: jnode.GradientFlowField((4,), activation="maxmin", key=k), "monoto"),
        (lambda k: jnode.FreeField((4, 4, 2), padding="same", key=k), "padding must"),
        (
            lambda k: jnode.OrthoField((3,), activation="maxmin", key=k)(
                0, jnp.ones(3)
            ),
            "even number",
        ),
    ],
)
def test_bad_fields(getkey, make, message):
    with pytest.raises(ValueError, match=message):
        make(getkey())
