"""Many steps a dispatch on images that the devices hold: the same as one by one."""

import dataclasses
import os
import signal
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.hlo_cost import collectives
from jnode import data, sharding
from jnode.data import device
from jnode.train import DataConfig, Interrupted, loop, train
from jnode.train.checkpoints import CheckpointMismatch, Checkpoints
from jnode.train.step import empty_metrics, init_state, make_step, make_steps
from jnode.train.trace import Trace
from tests.helpers import slow_but
from tests.test_data import toy
from tests.test_train import TINY, numbers, same

pytestmark = pytest.mark.usefixtures("standard_promotion")

# Eight steps an epoch.
EIGHT = dataclasses.replace(TINY, batch_size=12)


def counted(monkeypatch, stop_at=None):
    """The numbers of steps that are dispatched, one after another; SIGTERM after so
    many of them."""
    counts, make = [], loop.make_steps

    def made(*args):
        steps = make(*args)

        def call(given, state):
            counts.append(int(given[2]))
            result = steps(given, state)
            if len(counts) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return result

        return call

    monkeypatch.setattr(loop, "make_steps", made)
    return counts


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    with jax.numpy_dtype_promotion("standard"):
        model = train(EIGHT, folder, progress=False, steps_per_dispatch=1)
    return folder, model


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [4, 4] * 2),  # on CPU
        ({"steps_per_dispatch": 5}, [5, 3] * 2),
        (
            {"steps_per_dispatch": 50, "checkpoint_every": 3},
            [3, 3, 2, 1, 3, 3, 1],
        ),
        ({"steps_per_dispatch": 50, "profile": 4}, [3, 4, 1, 8]),
    ],
)
def test_many_steps_equal_one_by_one(
    one_by_one, tmp_path, monkeypatch, options, expected
):
    folder, model = one_by_one
    counts = counted(monkeypatch)
    run = tmp_path / "run"
    assert same(train(EIGHT, run, progress=False, **options), model)
    assert numbers(run) == numbers(folder)
    assert counts == expected
    assert ("profile" in options) == any(run.rglob("*.xplane.pb"))


@pytest.mark.slow
def test_interrupted_within_a_dispatch(one_by_one, tmp_path, monkeypatch):
    """It is finished, and the resumed run takes up behind it with another number."""
    folder, model = one_by_one
    counts, run = counted(monkeypatch, stop_at=4), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(EIGHT, run, progress=False, steps_per_dispatch=3)
    assert counts == [3, 3, 2, 3] and Checkpoints(run).steps() == [8, 11]
    resumed = train(EIGHT, run, resume=True, progress=False, steps_per_dispatch=2)
    assert counts[4:] == [2, 2, 1]
    assert same(resumed, model) and numbers(run) == numbers(folder)


@pytest.mark.parametrize("devices", slow_but([1, 2], 1))
def test_streamed_images_train_as_resident_ones(
    one_by_one, tmp_path, monkeypatch, devices
):
    mesh = sharding.data_mesh(jax.devices()[:2]) if devices == 2 else None
    models = []
    for limit in (device.RESIDENT_BYTES, 0):
        monkeypatch.setattr(device, "RESIDENT_BYTES", limit)
        run = tmp_path / str(limit)
        models.append(
            train(EIGHT, run, progress=False, steps_per_dispatch=5, mesh=mesh)
        )
    assert same(*models)
    if mesh is None:
        assert same(models[1], one_by_one[1])
    else:  # sums are taken in another order
        pairs = zip(*map(jax.tree.leaves, (models[1], one_by_one[1])), strict=True)
        assert all(np.allclose(x, y, atol=1e-4) for x, y in pairs)


@pytest.mark.parametrize("limit", [device.RESIDENT_BYTES, 0])
@pytest.mark.parametrize("kind", ["one device", "two devices", "explicit axes"])
def test_batches_of_a_feed(monkeypatch, limit, kind):
    """Step by step those of `data.batches`, on each device its rows alone."""
    monkeypatch.setattr(device, "RESIDENT_BYTES", limit)
    two = jax.devices()[:2]
    mesh = {
        "one device": None,
        "two devices": sharding.data_mesh(two),
        "explicit axes": jax.make_mesh((2,), ("data",), devices=two),
    }[kind]
    devices = 1 if mesh is None else 2
    images = toy(23)
    feed = data.Feed(images, 4, seed=3, longest=3, mesh=mesh)
    assert feed.per_epoch == 5
    pick = eqx.filter_jit(lambda batches, step: batches(step))
    for step in range(10):
        count = 1 + step % 2 if step % 5 < 4 else 1
        found = pick(feed(step, count), jnp.asarray(step + count - 1))
        epoch, place = divmod(step + count - 1, 5)
        expected = list(data.batches(images, 4, seed=3, epoch=epoch))[place]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
            assert len(ours.sharding.device_set) == devices
            assert {len(x.data) for x in ours.addressable_shards} == {4 // devices}


def test_an_epoch_takes_each_image_once():
    orders = [data.epoch_order(*at, 50).tolist() for at in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    assert data.epoch_order(0, 1, 50).tolist() == orders[1]


def compiled(mesh, config, count):
    """The program of many steps, its arguments."""
    dataset = data.load().take(96)
    sizes = {"image_shape": dataset.image_shape, "classes": 10}
    state = init_state(config, **sizes, total_steps=16)
    state, totals = sharding.replicate((state, empty_metrics(config.loss)), mesh)
    feed = data.Feed(dataset, config.batch_size, seed=0, longest=count, mesh=mesh)
    number = sharding.replicate(jnp.asarray(count, jnp.int32), mesh)
    given = feed(0, count), totals, number
    return make_steps(config, 16, mesh).lower(given, state).compile(), given, state


def test_a_mesh_exchanges_gradients_alone():
    """Once a step: each device picks its own rows, of images that it holds."""
    mesh = sharding.data_mesh(jax.devices()[:2])
    config = dataclasses.replace(EIGHT, data=DataConfig(pad=1, flip=True))
    program, given, state = compiled(mesh, config, 4)
    assert collectives(program.compiled.as_text()).counts == {"all-reduce": 1}
    state, totals = program(given, state)
    assert int(state.step) == int(totals.steps) == 4
    alone, given, state = compiled(None, config, 4)
    _, expected = alone(given, state)
    for name, value in expected.sums.items():
        assert float(totals.sums[name]) == pytest.approx(float(value), abs=1e-4)


def test_the_loop_computes_what_a_step_does():
    """Bit for bit, as a program of its own."""
    program, given, state = compiled(None, EIGHT, 3)
    batches = given[0]
    copy = jax.tree.map(lambda x: jnp.array(x) if eqx.is_array(x) else x, state)
    many, _ = program(given, copy)
    step = make_step(EIGHT, 16)
    for i in range(3):
        state, _ = step(batches(jnp.asarray(i, jnp.int32)), state)
    assert same(state, many)


def test_where_a_trace_begins_and_ends(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: seen.append("on"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append("off"))
    trace = Trace(tmp_path, begin=3, steps=4)
    for expected in (3, 4, 9):
        assert trace.until(9) == expected
        trace.steps(expected, jnp.zeros(()))
        seen.append(expected)
    assert seen == ["on", 3, "off", 4, 9]
    none = Trace(tmp_path, begin=3, steps=0)
    assert none.until(9) == 9


def test_refusals(tmp_path):
    for option in ("steps_per_dispatch", "checkpoint_every"):
        bad: dict[str, Any] = {option: 0}
        with pytest.raises(ValueError, match=f"{option} must be an integer of at leas"):
            train(EIGHT, tmp_path / "run", progress=False, **bad)
    assert not (tmp_path / "run").exists()
    for name in ("seed", "epoch"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0, not -1"):
            data.epoch_order(**({"seed": 0, "epoch": 0} | {name: -1}), number=3)


def test_a_run_in_another_order_is_not_gone_on_with(one_by_one):
    """Checkpoints tell in what order their run takes the images."""
    folder, _ = one_by_one
    sizes = {"image_shape": (28, 28, 1), "classes": 10}
    like = init_state(EIGHT, **sizes, total_steps=16), empty_metrics(EIGHT.loss)
    kept = Checkpoints(folder)
    found = kept.restore(like, {"order": "jax.random.permutation"})
    assert found is not None and found[1] == 16
    with pytest.raises(CheckpointMismatch, match="order"):
        kept.restore(like, {"order": "numpy"})
