"""Training: it learns, resumes bit for bit, refuses to overwrite, stops in order."""

import dataclasses
import json
import os
import signal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jnode
from jnode.fields import Decay
from jnode.train import (
    PRESETS,
    DataConfig,
    Interrupted,
    LossConfig,
    RunDir,
    TrainConfig,
    get_preset,
    loop,
    losses,
    make_loss,
    train,
)
from jnode.train.config import from_dict
from tests.helpers import singular_values, small_model

pytestmark = pytest.mark.usefixtures("standard_promotion")

TINY = TrainConfig(
    data=DataConfig(num_train=96, pad=1),
    model=jnode.ModelConfig("gradient_flow", patch=7, features=50, lipschitz=4.0),
    solver=jnode.Solver("euler", steps=2),
    loss=LossConfig("margin", rho=0.1, temperature=4.0),
    epochs=2,
    batch_size=32,
)


def leaves(model):
    return [np.asarray(x) for x in jax.tree.leaves(model) if hasattr(x, "dtype")]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def numbers(folder):
    """The rows of a run, without what depends on the machine's mood."""
    rows = [json.loads(s) for s in (folder / "metrics.jsonl").read_text().splitlines()]
    mood = {"seconds", "images_per_second", "compile_seconds", "peak_process_bytes"}
    return [{k: v for k, v in row.items() if k not in mood} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with jax.numpy_dtype_promotion("standard"):
        model = train(TINY, folder, progress=False)
    return folder, model


def test_run_folder(finished):
    folder, model = finished
    config, facts = RunDir(folder).read_config()
    assert config == TINY
    assert facts["num_train"] == 96 and facts["classes"] == 10
    rows = [json.loads(s) for s in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [3, 6]
    assert rows[1]["loss"] < rows[0]["loss"]
    assert rows[0]["nfe"] == 2
    loaded = jnode.load(folder)
    assert same(loaded, model.bake())
    image = jnp.zeros((28, 28, 1))
    assert jax.jit(jax.vmap(loaded))(image[None]).shape == (1, 10)
    assert jnp.isfinite(jax.grad(lambda x: loaded(x)[0])(image)).all()


def test_interrupted_and_resumed_equals_uninterrupted(
    finished, tmp_path, monkeypatch, capsys
):
    whole, model = finished
    make_step = loop.make_step
    taken = []

    def interrupting(*args):
        step = make_step(*args)

        def wrapped(batch, state):
            result = step(batch, state)
            taken.append(1)
            if len(taken) == 4:  # in the middle of the second epoch
                os.kill(os.getpid(), signal.SIGTERM)
            return result

        return wrapped

    monkeypatch.setattr(loop, "make_step", interrupting)
    with pytest.raises(Interrupted) as stop:
        train(TINY, tmp_path / "run", progress=False)
    assert stop.value.code == 128 + signal.SIGTERM
    with pytest.raises(FileNotFoundError, match="has no model.eqx"):
        jnode.load(tmp_path / "run")
    assert len(taken) == 4
    # A damaged newest checkpoint falls back to the one before.
    kept = RunDir(tmp_path / "run").checkpoints
    assert kept.steps() == [3, 4]
    for path in kept.path(4).rglob("d/*"):
        path.write_bytes(path.read_bytes()[:100])
    resumed = train(TINY, tmp_path / "run", resume=True, progress=False)
    assert same(resumed, model)
    said = capsys.readouterr().out
    assert "step_000000004 is damaged" in said and "checkpoint before" in said
    assert (tmp_path / "run" / "damaged" / "step_000000004").is_dir()
    assert numbers(tmp_path / "run") == numbers(whole)


def test_bounds_hold_after_training(finished):
    _, model = finished
    weight = model.field.weights[0].bake()
    values = singular_values(weight, (4, 4, 50))
    assert np.abs(values - 1).max() < 1e-4
    assert values.max() <= float(weight.norm())


def test_overwrite_and_resume_are_asked_for(finished, tmp_path):
    folder, _ = finished
    with pytest.raises(FileExistsError, match="--resume"):
        train(TINY, folder, progress=False)
    other = dataclasses.replace(TINY, seed=7)
    with pytest.raises(ValueError, match="another configuration"):
        train(other, folder, resume=True, progress=False)
    with pytest.raises(ValueError, match="exclude each other"):
        train(TINY, folder, resume=True, overwrite=True, progress=False)
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not a run folder"):
        train(TINY, tmp_path, overwrite=True, progress=False)
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("damage", ["cut", "garbage", "other", "longer"])
def test_damaged_model(finished, tmp_path, damage):
    folder, _ = finished
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    whole = (folder / "model.eqx").read_bytes()
    if damage == "other":
        config = json.loads((folder / "config.json").read_text())
        config["train"]["model"]["features"] = 64
        (tmp_path / "config.json").write_text(json.dumps(config))
    bad = {
        "cut": whole[:-50],
        "garbage": b"x" * 999,
        "other": whole,
        "longer": whole * 2,
    }
    (tmp_path / "model.eqx").write_bytes(bad[damage])
    with pytest.raises(ValueError, match=r"model\.eqx .*(damaged|more than)"):
        jnode.load(tmp_path)


def test_not_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        jnode.load(tmp_path)
    (tmp_path / "config.json").write_text('{"train": {"colour": 1}}')
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        jnode.load(tmp_path)


def test_config_survives_json():
    for name in PRESETS:
        config = get_preset(name)
        text = json.dumps(dataclasses.asdict(config))
        assert from_dict(TrainConfig, json.loads(text)) == config


def test_losses(getkey):
    model = small_model(getkey(), lipschitz=2.0)
    images = jr.uniform(getkey(), (8, 8, 8, 1))
    labels = jnp.arange(8) % 4
    value = lambda **kw: float(
        make_loss(LossConfig(**kw))(model, images, labels, jr.split(jr.key(0), 8))[0]
    )
    natural = value()
    assert value(name="margin", rho=0.0) == pytest.approx(natural, rel=1e-6)
    assert value(name="margin", rho=0.5) > natural
    assert value(inputs="noise", sigma=0.0) == pytest.approx(natural, rel=1e-6)
    assert value(inputs="noise", sigma=0.5) != pytest.approx(natural, rel=1e-3)
    assert value(inputs="noise", sigma=0.5, share=0.0) == pytest.approx(natural)
    assert value(inputs="adversarial", epsilon=0.1, steps=3) > natural
    for wrong in ({"inputs": "dirty"}, {"share": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LossConfig(**wrong)


def test_unrest_of_a_field_at_rest(getkey):
    """On fields whose trajectories are known: f = -y, and f = 0."""
    model = small_model(getkey(), "ortho", jnode.Solver("rk4", steps=4))
    decaying = eqx.tree_at(lambda m: m.field, model, Decay(1.0))
    resting = eqx.tree_at(lambda m: m.field, model, Decay(0.0))
    states = jr.normal(getkey(), (3, 4, 4, 4))
    mean = jnp.mean(jnp.abs(states), axis=(1, 2, 3))
    keys = jr.split(getkey(), 3)
    unrest = losses.steady_state_unrest(decaying, states, keys)
    # The integral of |y(1)| e^-(t - 1) over [1, 2], by the trapezoidal rule.
    assert unrest.tolist() == pytest.approx(
        (mean * (1 - np.exp(-1))).tolist(), rel=1e-2
    )
    assert (losses.steady_state_unrest(resting, states, keys) == 0).all()
    # J = -I is diagonal: the dominance is -1, the trace's mean is -1.
    speed = jnp.sqrt(jnp.mean(states**2, axis=(1, 2, 3)))
    expected = speed + 2 * jax.nn.softplus(-1.0)
    ours = losses.lyapunov_unrest(decaying, states, keys)
    assert ours.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    moving = eqx.tree_at(
        lambda m: m.field, model, jnode.OrthoField((4, 4, 4), time=True, key=getkey())
    )
    with pytest.raises(ValueError, match="time-invariant"):
        losses.steady_state_unrest(moving, states, keys)


@pytest.mark.parametrize("name", ["steady_state", "lyapunov"])
def test_training_for_rest_lessens_unrest(getkey, name):
    model = small_model(getkey(), "free", jnode.Solver("rk4", steps=2))
    images = jr.uniform(getkey(), (16, 8, 8, 1))
    labels = jnp.arange(16) % 4
    loss = make_loss(LossConfig(name, weight=1.0))
    optimizer = optax.adam(0.01)
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        (_, aux), grads = eqx.filter_value_and_grad(loss, has_aux=True)(
            model, images, labels, jr.split(jr.key(0), 16)
        )
        updates, state = optimizer.update(grads, state)
        return eqx.apply_updates(model, updates), state, aux["unrest"]

    seen = []
    for _ in range(30):
        model, state, unrest = step(model, state)
        seen.append(float(unrest))
    assert seen[-1] < 0.8 * seen[0]


def test_explosion_is_named(tmp_path, monkeypatch):
    config = dataclasses.replace(
        TINY,
        model=jnode.ModelConfig("free", patch=7, features=50),
        solver=jnode.Solver("euler", steps=1),
        loss=LossConfig(temperature=1e38),
    )
    # Either the state or the loss is the first to be caught; both say what to do.
    with pytest.raises(RuntimeError, match="learning_rate|finite"):
        train(config, tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossConfig("hinge"), "natural, margin, steady_state"),
        (lambda: LossConfig(rho=-1.0), "rho must be at least 0"),
        (lambda: LossConfig(epsilon=-0.1), "epsilon must be at least 0"),
        (lambda: LossConfig(temperature=0.0), "temperature must be positive"),
        (lambda: LossConfig("lyapunov", weight=-1.0), "weight must be at least 0"),
        (
            lambda: TrainConfig(
                model=jnode.ModelConfig(time=True), loss=LossConfig("steady_state")
            ),
            "must not change with time",
        ),
        (
            lambda: TrainConfig(
                solver=jnode.Solver("tsit5"), loss=LossConfig("margin")
            ),
            "take a fixed-step solver",
        ),
        (
            lambda: TrainConfig(
                model=jnode.ModelConfig("free"), loss=LossConfig("margin")
            ),
            "a constrained field",
        ),
        (lambda: TrainConfig(epochs=0), "epochs must be at least 1"),
        (lambda: TrainConfig(learning_rate=0.0), "learning_rate must be positive"),
        (lambda: DataConfig(pad=-1), "pad must be at least 0"),
        (lambda: DataConfig(num_train=0), "num_train must be at least 1"),
    ],
)
def test_bad_configurations(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_batch_larger_than_the_data(tmp_path):
    config = dataclasses.replace(TINY, batch_size=97)
    with pytest.raises(ValueError, match="batch_size must be at most the 96"):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
