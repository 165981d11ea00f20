"""Training may multiply in bfloat16; certificates and evaluation never do."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.lax import Precision

import jnode
from jnode import certify
from jnode.linear.products import training_precision
from jnode.models.batched import batched
from jnode.train import RunDir, TrainConfig, train
from jnode.train.step import init_state, make_step
from tests.helpers import small_model
from tests.test_train import TINY, numbers, same

pytestmark = pytest.mark.usefixtures("standard_promotion")

FULL, ONE_PASS, THREE = Precision.HIGHEST, Precision.DEFAULT, Precision.HIGH
PASSES = {"highest": FULL, "high": THREE, "bfloat16": ONE_PASS}
FIELDS = ("gradient_flow", "ortho", "hamiltonian")


def precisions(jaxpr):
    """In what precision each product of a traced function is, on any platform."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            kind = eqn.params["precision"]
            found.extend(set(kind) if isinstance(kind, tuple) else [kind])
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found.extend(precisions(inner))
    return found


def traced(function, *args):
    return precisions(eqx.filter_make_jaxpr(function)(*args)[0].jaxpr)


@pytest.mark.parametrize("precision", PASSES)
def test_a_step_multiplies_as_it_is_told(precision):
    config = dataclasses.replace(TINY, precision=precision)
    state = init_state(config, image_shape=(28, 28, 1), classes=10, total_steps=9)
    batch = jnp.zeros((8, 28, 28, 1), jnp.uint8), jnp.zeros(8, jnp.int32)
    found = traced(make_step(config, 9), batch, state)
    # Constraints and bounds in full, and the products of the solve, both ways, not.
    assert set(found) == {FULL, PASSES[precision]}
    if precision != "highest":
        assert found.count(PASSES[precision]) >= 6
    assert all(
        x.dtype != jnp.bfloat16 for x in jax.tree.leaves(state) if eqx.is_array(x)
    )


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("padding", ["circular", "zero"])
def test_constraints_and_bounds_stay_in_full(getkey, field, padding):
    """Inside the context of training: the weights as the certificate takes them."""
    constraint = "cayley" if padding == "circular" else "aol"
    model = small_model(getkey(), field, padding=padding, constraint=constraint)
    resolve = lambda model: jnode.resolve(model)
    classify = lambda model, x: batched(jnode.resolve(model)[0])(x)
    images = jr.uniform(getkey(), (2, 8, 8, 1))
    with training_precision("bfloat16"):
        assert set(traced(resolve, model)) == {FULL}
        assert ONE_PASS in traced(classify, model, images)
    assert set(traced(classify, model, images)) == {FULL}


def certificates(model, images):
    """What is certified, as functions of arrays."""
    return {
        "radius": certify.radius(model, images),
        "lipschitz": model.lipschitz(),
        "amplification": jnode.amplification(
            model.blocks[0].field, model.blocks[0].solver
        ),
    }


@pytest.mark.parametrize("field", FIELDS[:2])
def test_certificates_are_in_full_wherever_they_are_asked(getkey, field):
    """Also where the same functions were traced for training before."""
    model, images = small_model(getkey(), field), jr.uniform(getkey(), (2, 8, 8, 1))
    classify = lambda m, x: batched(m)(x)
    with training_precision("bfloat16"):
        assert ONE_PASS in traced(classify, model, images)  # fills JAX's caches
        assert set(traced(certificates, model, images)) == {FULL}
    for function in (certificates, classify):
        assert set(traced(function, model, images)) == {FULL}


def test_local_certificates_are_in_full(getkey):
    model, images = small_model(getkey()), jr.uniform(getkey(), (2, 8, 8, 1))
    with training_precision("bfloat16"):
        assert set(traced(certify.local_radius, model, images)) == {FULL}


@pytest.mark.slow
def test_a_run_in_bfloat16_is_certified_in_full(tmp_path):
    config = dataclasses.replace(TINY, precision="bfloat16", epochs=1)
    trained = train(config, tmp_path / "run", progress=False)
    there, _ = RunDir(tmp_path / "run").read_config()
    assert there == config and there.precision == "bfloat16"
    model = jnode.load(tmp_path / "run")
    assert same(model, trained)
    images = jnp.zeros((2, 28, 28, 1))
    assert set(traced(certificates, model, images)) == {FULL}
    assert set(traced(lambda m, x: batched(m)(x), model, images)) == {FULL}
    # A CPU multiplies float32 in full whatever it is asked for.
    full = dataclasses.replace(config, precision="highest")
    assert same(train(full, tmp_path / "full", progress=False), trained)
    assert numbers(tmp_path / "full") == numbers(tmp_path / "run")
    assert np.isfinite(float(model.lipschitz()))


def test_an_old_configuration_is_of_full_precision():
    assert TrainConfig().precision == "highest"


def test_refusals():
    for make in (
        lambda: TrainConfig(precision="int8"),
        lambda: training_precision("x"),
    ):
        with pytest.raises(ValueError, match="precision must be one of highest, high"):
            make()
