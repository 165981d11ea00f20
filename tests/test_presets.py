"""Presets: whether the steps of their solvers do anything."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jnode
from jnode.models import step_lengths
from jnode.train import get_preset, train

pytestmark = pytest.mark.usefixtures("standard_promotion")


def trained(name, folder):
    """A narrow model of this preset after a short training, resolved; and images."""
    preset = get_preset(name)
    config = dataclasses.replace(
        preset,
        data=dataclasses.replace(preset.data, num_train=1024),
        model=dataclasses.replace(preset.model, features=16, hidden=32),
        epochs=4,
        batch_size=64,
    )
    model, _ = jnode.resolve(train(config, folder, progress=False))
    return model, jnode.data.to_float(jnode.data.load(split="test").images[:500])


@pytest.mark.slow
def test_every_step_of_contractive_matters(tmp_path):
    """Each moves the state far, and changes predictions if it is left out."""
    model, images = trained("contractive", tmp_path / "run")
    block = model.blocks[0]
    field, steps = block.field, block.solver.steps
    assert field.count == steps == 3
    mean = np.asarray(step_lengths(model, images)[0])
    assert (mean > 0.1 * mean[0]).all()  # tied weights: 0.01

    def predict(image, left_out):
        y = model.encode(image)
        for k in range(steps):
            step = field.segment(k)(0.0, y) / steps
            y = y + jnp.where(k == left_out, 0, step)
        return jnp.argmax(model.head(y.ravel()))

    predict = jax.jit(jax.vmap(predict, in_axes=(0, None)))
    whole = jnp.argmax(jax.jit(jax.vmap(model))(images), axis=1)
    assert (predict(images, -1) == whole).mean() > 0.99
    for k in range(steps):
        assert (predict(images, k) != whole).mean() > 0.02, k
