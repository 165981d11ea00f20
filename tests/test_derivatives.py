"""Derivatives of models and certificates: both modes, per sample, and never NaN."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import jnode
from jnode import certify
from jnode.constraints import CONSTRAINTS, constrained
from tests.helpers import compilations, slow_but, small_model

SHAPES = [(5,), (3, 4, 2)]


def flat(tree):
    return jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize("constraint", slow_but(CONSTRAINTS, "cayley", "sll"))
@pytest.mark.parametrize("shape", slow_but(SHAPES, SHAPES[1]))
def test_forward_mode_is_reverse_mode(getkey, x64, constraint, shape):
    """Through the constrained weights, by jvp, jacfwd and a Hessian-vector product."""
    make = lambda k: constrained(shape, shape[-1], constraint=constraint, key=k)
    params, static = eqx.partition(make(getkey()), eqx.is_inexact_array)
    direction = eqx.filter(make(getkey()), eqx.is_inexact_array)
    x, v = jr.normal(getkey(), (2, *shape))
    value = lambda p: jnp.sum(v * jnp.tanh(eqx.combine(p, static)(x)))
    gradient = jax.grad(value)(params)
    _, slope = jax.jvp(value, (params,), (direction,))
    dot = lambda a, b: jnp.vdot(flat(a), flat(b))
    assert slope == pytest.approx(float(dot(gradient, direction)), rel=1e-9)
    h = 1e-5
    step = lambda s: jax.tree.map(lambda p, d: p + s * d, params, direction)
    difference = (value(step(h)) - value(step(-h))) / (2 * h)
    assert slope == pytest.approx(float(difference), rel=1e-5, abs=1e-8)
    forward = jax.jit(jax.jacfwd(value))(params)
    assert jnp.abs(flat(forward) - flat(gradient)).max() < 1e-9
    _, twice = jax.jvp(jax.grad(value), (params,), (direction,))
    difference = (flat(jax.grad(value)(step(h))) - flat(jax.grad(value)(step(-h)))) / (
        2 * h
    )
    assert jnp.abs(flat(twice) - difference).max() < 1e-5


def test_per_sample_gradients_are_those_of_a_loop(getkey):
    model = small_model(getkey(), "ortho", lipschitz=2.0)
    images = jr.uniform(getkey(), (3, 8, 8, 1))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, image):
        return jnp.sum(eqx.combine(params, static)(image) ** 2)

    mapped = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, images)
    one = jax.jit(jax.grad(loss))
    looped = [one(params, image) for image in images]
    for i, single in enumerate(looped):
        found = jax.tree.map(lambda x, i=i: x[i], mapped)
        assert jnp.abs(flat(found) - flat(single)).max() < 1e-5
    total = jax.jit(jax.grad(lambda p: jnp.sum(jax.vmap(loss, (None, 0))(p, images))))(
        params
    )
    assert jnp.abs(flat(total) - sum(map(flat, looped))).max() < 1e-4


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("shape", slow_but(SHAPES, SHAPES[1]))
def test_zero_weights_have_finite_gradients(getkey, constraint, shape):
    """Of the value and of the norm, of the constrained map and of the plain one."""
    map_ = constrained(shape, shape[-1], constraint=constraint, key=getkey())
    zero = jax.tree.map(lambda w: 0 * w if eqx.is_inexact_array(w) else w, map_)
    x = jr.normal(getkey(), shape)

    def total(map_):
        plain, bound = jnode.resolve(map_)
        return jnp.sum(plain(x)) + bound

    for value in (total, lambda m: m.norm()):
        for map_ in (zero, jnode.resolve(zero)[0]):
            grads = eqx.filter_grad(value)(map_)
            assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    "field", slow_but(["gradient_flow", "ortho", "free"], "gradient_flow")
)
def test_no_nan_arises_in_a_certificate(getkey, field):
    model = (
        small_model(getkey(), field, lipschitz=2.0)
        if field != "free"
        else (small_model(getkey(), field))
    )
    tied = eqx.tree_at(lambda m: m.head.weight, model, replace_fn=jnp.zeros_like)
    images = jr.uniform(getkey(), (2, 8, 8, 1))
    with jax.debug_nans(True):
        for m in (model, tied):
            radii = certify.radius(m, images)
            assert ((radii >= 0) & jnp.isfinite(radii)).all()
            assert (radii > 0).any() == (field != "free" and m is model)
            for f in (certify.radius, certify.local_radius):
                grads = eqx.filter_grad(lambda m, f=f: jnp.sum(f(m, images)))(m)
                assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    "certificate", slow_but([certify.radius, certify.local_radius], certify.radius)
)
def test_gradients_of_radii_are_difference_quotients(getkey, x64, certificate):
    model = small_model(getkey(), "ortho", lipschitz=1.0, activation="tanh")
    images = jr.uniform(getkey(), (4, 8, 8, 1))
    total = eqx.filter_jit(lambda m: jnp.sum(certificate(m, images)))
    grads = eqx.filter_grad(total)(model)
    for where in (lambda m: m.head.weight, lambda m: m.blocks[0].field.first_bias):
        direction = jr.normal(getkey(), where(model).shape)
        h = 1e-6
        moved = lambda s, w=where, d=direction: eqx.tree_at(
            w, model, replace_fn=lambda x: x + s * d
        )
        difference = (total(moved(h)) - total(moved(-h))) / (2 * h)
        slope = jnp.vdot(where(grads), direction)
        assert slope == pytest.approx(float(difference), rel=1e-3, abs=1e-6)


def test_a_model_of_one_class_has_no_radius(getkey):
    config = jnode.ModelConfig(field="ortho", features=4, patch=2)
    model = jnode.build(
        config,
        jnode.Solver("rk4", steps=1),
        image_shape=(8, 8, 1),
        classes=1,
        key=getkey(),
    )
    with pytest.raises(ValueError, match="at least 2 classes"):
        certify.radius(model, jnp.zeros((1, 8, 8, 1)))


def test_nan_images_are_not_certified(getkey):
    model = small_model(getkey())
    images = jnp.full((1, 8, 8, 1), jnp.nan)
    with pytest.raises(RuntimeError, match="ceased to be finite"):
        certify.radius(model, images)


@pytest.mark.slow
def test_eager_calls_compile_once(getkey):
    model = small_model(getkey(), lipschitz=2.0, segments=(2,))
    images, key = jr.uniform(getkey(), (2, 8, 8, 1)), getkey()
    states = jr.normal(getkey(), (3, 4, 4, 4))
    jumping = model.blocks[0].field
    assert isinstance(jumping, jnode.PiecewiseField)
    field = jumping.segment(0)
    calls = [
        lambda: field(0.0, states[0]),
        lambda: field.bake(),
        lambda: field.lipschitz(),
        lambda: model.lipschitz(),
        lambda: jnode.resolve(model),
        lambda: model(images[0]),
        lambda: certify.radius(model, images),
        lambda: certify.local_radius(model, images),
        lambda: certify.amplification(field, jnode.Solver("rk4", steps=3)),
        lambda: certify.estimate_lipschitz(field, states, key=key, iterations=3),
        lambda: certify.lipschitz_lower_bound(model.embed, images[0], key=key, steps=3),
    ]
    for call in calls:
        jax.block_until_ready(eqx.filter(call(), eqx.is_array))
        with compilations() as count:
            jax.block_until_ready(eqx.filter(call(), eqx.is_array))
        assert not count
