"""Models: shapes, isometry, errors."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import jnode
from jnode.constraints import Constrained
from jnode.models import ConvEncoder, Lift
from jnode.models.config import FIELDS
from jnode.train import PRESETS, get_preset
from tests.helpers import slow_but, small_model


@pytest.mark.parametrize(("shape", "patch"), [((28, 28, 1), 4), ((32, 32, 3), 4)])
def test_lift_is_isometric(getkey, shape, patch):
    encoder = Lift(shape, patch=patch, features=48)
    a, b = jr.uniform(getkey(), (2, *shape))
    before = jnp.linalg.norm((a - b).ravel())
    after = jnp.linalg.norm((encoder(a) - encoder(b)).ravel())
    assert float(after) == pytest.approx(float(before), rel=1e-6)
    assert encoder.lipschitz() == 1


def test_conv_encoder(getkey):
    encoder = ConvEncoder((28, 28, 1), features=8, key=getkey())
    assert encoder(jnp.zeros((28, 28, 1))).shape == (7, 7, 8)
    assert encoder.lipschitz() == jnp.inf


@pytest.mark.parametrize("field", slow_but(FIELDS, "gradient_flow", "free"))
def test_model_maps_one_image_and_batches(getkey, field):
    model = small_model(getkey(), field)
    images = jr.uniform(getkey(), (3, 8, 8, 1))
    logits = jax.jit(jax.vmap(model))(images)
    assert logits.shape == (3, 4)
    assert jnp.abs(logits[1] - model.bake()(images[1])).max() < 1e-5
    gradient = jax.grad(lambda x: model(x)[0])(images[0])
    assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0


@pytest.mark.parametrize("name", slow_but(PRESETS, "contractive", "odenet"))
def test_presets_build(name):
    config = get_preset(name)
    model = jnode.build(
        config.model,
        config.solver,
        image_shape=(28, 28, 1),
        classes=10,
        key=jr.key(0),
    )
    assert jax.eval_shape(model, jnp.zeros((28, 28, 1))).shape == (10,)


def test_unit_norm_head(getkey):
    rows = small_model(getkey()).head.rows()
    assert jnp.abs(jnp.linalg.norm(rows, axis=1) - 1).max() < 1e-6


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda k: get_preset("resnet"), "ortho, ortho_mnist, contractive"),
        (lambda k: jnode.ModelConfig(field="magic"), "ortho, gradient_flow, skew"),
        (lambda k: jnode.ModelConfig(encoder="magic"), "isometric, conv"),
        (lambda k: Lift((9, 8, 1), patch=2, features=4), "patch must"),
        (lambda k: Lift((8, 8, 1), patch=2, features=3), "features must"),
        (lambda k: ConvEncoder((8, 8, 1), features=3, key=k), "even"),
        (
            lambda k: small_model(k)(jnp.zeros((8, 9, 1))),
            r"must have shape \(8, 8, 1\)",
        ),
    ],
)
def test_bad_models(getkey, act, message):
    with pytest.raises(ValueError, match=message):
        act(getkey())


def test_pieces_and_field_options(getkey):
    solver = jnode.Solver("euler", steps=4)
    options = dict(
        segments=(2,), potentials=2, decay=0.1, constraint="sll", padding="zero"
    )
    model = small_model(getkey(), "gradient_flow", solver, **options)
    field = model.blocks[0].field
    assert isinstance(field, jnode.PiecewiseField)
    segment = field.segment(0)
    assert isinstance(segment, jnode.GradientFlowField)
    assert len(segment.weights) == 2 and segment.decay == 0.1
    weight = segment.weights[0]
    assert isinstance(weight, Constrained) and weight.padding == "zero"
    image = jr.uniform(getkey(), (8, 8, 1))
    assert jnp.abs(model(image) - model.bake()(image)).max() < 1e-5
    assert 0 < float(model.lipschitz()) < 1.1
    free = model.with_solver(jnode.Solver("tsit5"))
    assert free.lipschitz() == jnp.inf and free(image).shape == (4,)
    with pytest.raises(ValueError, match="steps must be a multiple of 2"):
        small_model(getkey(), solver=jnode.Solver("euler", steps=3), segments=(2,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(field="resnet"), "field must be one of ortho, gradient_flow"),
        (dict(encoder="vit"), "encoder must be one of"),
        (dict(segments=(0,)), "segments must be"),
        (dict(field="ortho", decay=0.1), "decay must be left out for field 'ortho'"),
        (dict(field="ortho", group_norm=True), "group_norm must be left out"),
        (dict(field="free", constraint="aol"), "constraint must be left out"),
        (dict(field="gradient_flow", time=True), "time must be left out"),
    ],
)
def test_bad_model_options(options, message):
    with pytest.raises(ValueError, match=message):
        jnode.ModelConfig(**options)
