"""Data parallelism: the same numbers on any number of devices, and few exchanges."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode import sharding
from jnode.train import DataConfig, LossConfig, TrainConfig
from jnode.train.state import TrainState, make_optimizer
from jnode.train.step import make_step
from tests.helpers import small_model

pytestmark = pytest.mark.usefixtures("standard_promotion")

ADAPTIVE = jnode.Solver("bosh3", rtol=1e-2, atol=1e-2)
FIXED = jnode.Solver("euler", steps=2)


def model_of(solver):
    """A small contractive classifier."""
    return small_model(jr.key(0), "gradient_flow", solver, lipschitz=4.0)


def batch_of(n):
    """Images as bytes, whose solves differ in length, and labels."""
    rng = np.random.default_rng(0)
    bright = np.linspace(0.1, 1, n)[:, None, None, None]
    images = (255 * bright * rng.uniform(size=(n, 8, 8, 1))).astype(np.uint8)
    return images, (np.arange(n) % 4).astype(np.int32)


def pixels(n):
    return np.asarray(jnode.data.to_float(batch_of(n)[0]))


def train_steps(mesh, steps, *, accumulate=1, loss=None, solver=FIXED):
    """The state after some steps, their losses, and the step's compiled text."""
    config = TrainConfig(
        data=DataConfig(pad=1, flip=True),
        loss=loss or LossConfig("noise", temperature=4.0),
        solver=solver,
        batch_size=16,
        accumulate=accumulate,
        learning_rate=1e-2,
    )
    model = model_of(solver)
    params = eqx.filter(model, eqx.is_inexact_array)
    opt = make_optimizer(config, 20).init(params)
    state = TrainState(model, opt, jnp.asarray(0, jnp.int32))
    batch = batch_of(16)
    if mesh is None:
        batch = jax.tree.map(jnp.asarray, batch)
    else:
        state = sharding.replicate(state, mesh)
        batch = sharding.shard_batch(batch, mesh)
    step = make_step(config, 20, mesh)
    compiled = step.lower(batch, state).compile()
    values = []
    for _ in range(steps):
        state, metrics = compiled(batch, state)
        values.append(float(metrics["loss"]))
    return state, values, compiled.compiled.as_text()


def farthest(a, b):
    """The largest difference between the arrays of two trees."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(
        float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max())
        for x, y in pairs
        if eqx.is_array(x)
    )


@pytest.fixture(scope="module")
def mesh():
    return sharding.data_mesh(jax.devices()[:2])


@pytest.fixture(scope="module")
def single():
    """Three steps on one device."""
    with jax.numpy_dtype_promotion("standard"):
        return train_steps(None, 3)


def test_training_equals_one_device(mesh, single):
    state, values, text = train_steps(mesh, 3)
    assert values == pytest.approx(single[1], abs=1e-5)
    assert farthest(state, single[0]) < 1e-5
    # Stated in docs/distributed.md: one exchange a step, and none in a loop.
    found = sharding.collectives(text)
    assert found.counts == {"all-reduce": 1} and found.in_loops == 0
    assert all(len(x.sharding.device_set) == 2 for x in jax.tree.leaves(state.step))
