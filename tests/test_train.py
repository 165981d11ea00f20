"""Training: it learns, resumes bit for bit, refuses to overwrite, stops in order."""

import dataclasses
import json
import os
import shutil
import signal
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jnode
from jnode.attacks import Budget
from jnode.constraints import plain
from jnode.fields import Decay
from jnode.runs import certify_run
from jnode.train import (
    DataConfig,
    Interrupted,
    LossConfig,
    RunDir,
    TrainConfig,
    load_best,
    loop,
    losses,
    make_loss,
    train,
)
from jnode.train.checkpoints import Checkpoints
from jnode.train.config import evaluation_images, training_images
from jnode.train.run_dir import CONTENTS, FORMAT
from jnode.train.step import decays, make_optimizer
from tests.helpers import singular_values, slow_but, small_model

pytestmark = pytest.mark.usefixtures("standard_promotion")

TINY = TrainConfig(
    data=DataConfig(num_train=96, pad=1),
    model=jnode.ModelConfig("gradient_flow", patch=7, features=50, lipschitz=4.0),
    solver=jnode.Solver("euler", steps=2),
    loss=LossConfig("margin", rho=0.1, logit_scale=4.0),
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
    assert same(loaded, model)  # as it was trained: constrained
    assert jnp.isfinite(loaded.lipschitz())
    image = jnp.zeros((28, 28, 1))
    assert jax.jit(jax.vmap(loaded))(image[None]).shape == (1, 10)
    assert jnp.isfinite(jax.grad(lambda x: loaded(x)[0])(image)).all()


def test_interrupted_and_resumed_equals_uninterrupted(
    finished, tmp_path, monkeypatch, capsys
):
    whole, model = finished
    make_steps = loop.make_steps
    taken = []

    def interrupting(*args):
        steps = make_steps(*args)

        def wrapped(given, state):
            result = steps(given, state)
            taken.append(1)
            if len(taken) == 4:  # in the middle of the second epoch
                os.kill(os.getpid(), signal.SIGTERM)
            return result

        return wrapped

    monkeypatch.setattr(loop, "make_steps", interrupting)
    with pytest.raises(Interrupted) as stop:
        train(TINY, tmp_path / "run", progress=False, steps_per_dispatch=1)
    assert stop.value.signal == signal.SIGTERM
    with pytest.raises(FileNotFoundError, match="has no model.json"):
        jnode.load(tmp_path / "run")
    assert len(taken) == 4
    # A damaged newest checkpoint falls back to the one before.
    kept = Checkpoints(tmp_path / "run")
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
    weight = plain(model.blocks[0].field.weights[0])
    values = singular_values(weight, (4, 4, 50))
    assert np.abs(values - 1).max() < 1e-4
    assert values.max() <= float(weight.norm())


def test_overwrite_and_resume_are_asked_for(finished, tmp_path):
    folder, _ = finished
    with pytest.raises(FileExistsError, match="--resume"):
        train(TINY, folder, progress=False)
    data = dataclasses.replace(TINY.data, pad=2)
    other = dataclasses.replace(TINY, seed=7, data=data)
    words = f"data.pad was {TINY.data.pad} and is 2; seed was {TINY.seed} and is 7"
    with pytest.raises(ValueError, match=f"another configuration: {words}"):
        train(other, folder, resume=True, progress=False)
    with pytest.raises(ValueError, match="exclude each other"):
        train(TINY, folder, resume=True, overwrite=True, progress=False)
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not a run folder"):
        train(TINY, tmp_path, overwrite=True, progress=False)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_format_of_the_folder(finished, tmp_path):
    folder, _ = finished
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == FORMAT == RunDir(folder).read_config()[1]["format"]

    def written(**changes):
        new = {k: v for k, v in (config | changes).items() if v is not None}
        (tmp_path / "config.json").write_text(json.dumps(new))

    for older in (None, FORMAT - 1):  # the first had no number
        written(format=older)
        with pytest.raises(ValueError, match=f"earlier jnode, in format {older or 1}"):
            RunDir(tmp_path).read_config()
    written(format=FORMAT + 1, image_shape=None)
    with pytest.raises(ValueError, match="newer jnode, .* upgrade jnode"):
        train(TINY, tmp_path, resume=True, progress=False)
    written(format="new")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        RunDir(tmp_path).read_config()


def test_a_run_holds_a_model_file(finished, tmp_path):
    """Two files of its folder are the model, and need nothing else of it."""
    folder, model = finished
    for name in ("model.json", "model.eqx"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert same(jnode.load(tmp_path), model)
    # A finished run that lost them writes them anew from its last checkpoint.
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    (run / "model.json").unlink()
    with pytest.raises(FileNotFoundError, match="no model.json.*--resume"):
        jnode.load(run)
    train(TINY, run, resume=True, progress=False)
    assert same(jnode.load(run), model)


def test_one_training_at_a_time(finished, tmp_path, monkeypatch):
    """Whatever the second asks for; and the lock ends with the first."""
    run = tmp_path / "run"
    make_steps = loop.make_steps
    tried = []

    def made(*args):
        options: list[dict[str, Any]] = [{}, {"resume": True}, {"overwrite": True}]
        for option in options:
            with pytest.raises((RuntimeError, FileExistsError)) as error:
                train(TINY, run, progress=False, **option)
            tried.append(str(error.value))
        return make_steps(*args)

    monkeypatch.setattr(loop, "make_steps", made)
    model = train(TINY, run, progress=False)
    assert f"{run} exists already" in tried[0]
    in_use = f"{run} is in use: another training writes into it."
    assert all(in_use in words for words in tried[1:])
    assert same(model, finished[1])
    monkeypatch.setattr(loop, "make_steps", make_steps)
    assert same(train(TINY, run, resume=True, progress=False), model)
    assert RunDir(run).unknown() == []


def test_overwriting_removes_all_that_was_written(finished, tmp_path):
    """And nothing else."""
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    for name in CONTENTS:
        path = run.path / name
        if path.suffix:
            path.write_text("old")
        else:
            path.mkdir()
            (path / "old").write_text("old")
    (run.path / ".row.json.123.tmp").write_text("half")
    (run.path / "notes.txt").write_text("mine")
    assert run.unknown() == [run.path / "notes.txt"]
    run.create(overwrite=True)
    left = {path.name for path in run.path.iterdir()}
    assert left == {"notes.txt", ".training.lock", ".evaluation.lock"}
    for name in CONTENTS:
        (tmp_path / "other" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "other" / name).symlink_to(tmp_path)
        with pytest.raises(ValueError, match=f"{name} is a link out of its folder"):
            RunDir(tmp_path / "other").check_links()
        (tmp_path / "other" / name).unlink()


def decayed(config):
    """The arrays of a model that decay, by their paths."""
    model = jnode.build(
        config,
        jnode.Solver("euler", steps=2),
        image_shape=(8, 8, 1),
        classes=4,
        key=jr.key(0),
    )
    mask = decays(eqx.filter(model, eqx.is_inexact_array))
    found = jax.tree_util.tree_flatten_with_path(mask)[0]
    assert len(found) == len(jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))
    return {jax.tree_util.keystr(path) for path, chosen in found if chosen}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # A bias of two segments has rank 2, and is a bias.
        (
            {"field": "gradient_flow", "segments": (2,), "learnable": True},
            {".layers[1].field.segments.weights[0].weight"},
        ),
        (
            {"field": "ortho", "time": True, "activation": "householder"},
            {".layers[1].field.first.weight", ".layers[1].field.second.weight"},
        ),
        ({"field": "ortho", "constraint": "sll"}, set()),
        ({"field": "skew"}, set()),  # rescaled
        ({"field": "gradient_flow", "constraint": "newton_schulz"}, set()),
        ({"field": "hamiltonian", "constraint": "aol"}, set()),
        (
            {
                "field": "free",
                "encoder": "conv",
                "group_norm": True,
                "time": True,
                "unit_norm": False,
            },
            {
                *(f".layers[0].convs[{i}].weight" for i in range(3)),
                ".layers[1].field.first.weight",
                ".layers[1].field.second.weight",
                ".head.weight",
            },
        ),
    ],
)
def test_which_weights_decay(options, expected):
    assert decayed(jnode.ModelConfig(features=4, patch=2, **options)) == expected


def test_decay_changes_what_decays_and_nothing_else(getkey):
    """Without a gradient: the kernel shrinks by rate times decay, all else stays."""
    config = dataclasses.replace(TINY, weight_decay=0.5)
    model = small_model(getkey(), segments=(2,), learnable=True)
    params = eqx.filter(model, eqx.is_inexact_array)
    optimizer = make_optimizer(config, 10)
    state = optimizer.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = optimizer.update(zeros, state, params)  # the rate starts at 0
    updates, _ = optimizer.update(zeros, state, params)
    rate = config.learning_rate
    for before, change, chosen in zip(
        *map(jax.tree.leaves, (params, updates, decays(params))), strict=True
    ):
        expected = -0.5 * rate * before if chosen else jnp.zeros_like(before)
        np.testing.assert_allclose(change, expected, rtol=1e-5)


def dtypes(model):
    return {str(x.dtype) for x in leaves(model)}


@pytest.mark.slow
def test_precision_of_a_run_is_kept(finished, tmp_path):
    """Read with and without jax_enable_x64, by whichever it was written."""
    folder, _ = finished
    one = dataclasses.replace(TINY, epochs=1, data=DataConfig(num_train=64))
    image = np.linspace(0, 1, 28 * 28, dtype=np.float32).reshape(1, 28, 28, 1)
    loaded = [jnode.load(folder), load_best(folder)]
    logits = jax.jit(jax.vmap(loaded[0]))(image)
    with jax.enable_x64(True):
        for best, short in enumerate(loaded):
            again = (load_best if best else jnode.load)(folder)
            assert dtypes(again) == {"float32"} and same(again, short)
        # The times are float64 here, so the states are, as in Diffrax.
        with jax.numpy_dtype_promotion("standard"):
            wide = jax.jit(jax.vmap(again))(image)
        np.testing.assert_allclose(wide, logits, atol=1e-5)
        # Two steps from scratch.
        trained = train(one, tmp_path / "long", progress=False)
        assert dtypes(trained) == {"float64"}
        assert np.isfinite(numbers(tmp_path / "long")[0]["loss"])
        long = jnode.load(tmp_path / "long")
        assert dtypes(long) == {"float64"}
        with pytest.raises(ValueError, match="jax_enable_x64 False, .* has True"):
            train(TINY, folder, resume=True, progress=False)
    for best in (False, True):
        rounded = (load_best if best else jnode.load)(tmp_path / "long")
        assert dtypes(rounded) == {"float32"}
        for get in (lambda m: m.head.weight, lambda m: m.blocks[0].field.biases[0]):
            expected = np.asarray(get(trained)).astype(np.float32)
            np.testing.assert_array_equal(get(rounded), expected)


def test_long_images_of_long_models():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    with jax.enable_x64(True):
        pixels = jnode.data.to_float(images, jnp.float64)
        assert pixels.dtype == jnp.float64
        np.testing.assert_allclose(pixels, images / 255, rtol=1e-15)
    with pytest.raises(TypeError, match="dtype must be a floating type, not int32"):
        jnode.data.to_float(images, jnp.int32)


def test_not_a_run(tmp_path):
    for read in (load_best, lambda path: RunDir(path).read_config()):
        with pytest.raises(FileNotFoundError, match="not a run folder"):
            read(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 3, "train": {"colour": 1}}')
    for read in (load_best, lambda path: RunDir(path).read_config()):
        with pytest.raises(ValueError, match=r"config\.json is damaged"):
            read(tmp_path)


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
    refused: list[dict[str, Any]] = [{"inputs": "dirty"}, {"share": 1.5}]
    for wrong in refused:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LossConfig(**wrong)


def test_trades_is_the_divergence_from_an_adversarial_example(getkey):
    """No budget leaves it 0; steps raise it above a random point's."""
    model = small_model(getkey(), lipschitz=2.0)
    images = jr.uniform(getkey(), (8, 8, 8, 1))
    labels, keys = jnp.arange(8) % 4, jr.split(jr.key(0), 8)
    logits = jax.vmap(model)(images)

    @eqx.filter_jit
    def penalty(model=model, **kw):
        config = LossConfig("trades", logit_scale=3.0, **kw)
        clean = jax.vmap(model)(images)
        return losses.trades_penalty(model, images, clean, keys, config)

    assert np.allclose(penalty(epsilon=0.0), 0, atol=1e-6)
    reached = penalty(epsilon=0.1, steps=10)
    start = Budget("linf", 0.1).of_each(images).random_starts(images, keys)
    p, q = (
        np.asarray(jax.nn.softmax(3 * z), np.float64)
        for z in (logits, jax.vmap(model)(start))
    )
    before = np.sum(p * np.log(p / q), axis=1)
    assert (np.asarray(reached) > 1.5 * before).all()
    config = LossConfig("trades", logit_scale=3.0, weight=2.0, epsilon=0.1)
    value, aux = eqx.filter_jit(make_loss(config))(model, images, labels, keys)
    expected = float(jnp.mean(reached))
    assert float(aux["penalty"]) == pytest.approx(expected, rel=1e-5)
    entropy = -np.mean(np.log(p[np.arange(8), np.asarray(labels)]))
    assert float(value) == pytest.approx(entropy + 2 * expected, rel=1e-5)


@pytest.mark.parametrize("unit_norm", [True, False])
def test_margin_loss_by_its_formula(getkey, unit_norm):
    """Written out in NumPy, class by class."""
    model = small_model(getkey(), lipschitz=2.0, unit_norm=unit_norm)
    model = eqx.tree_at(lambda m: m.head.bias, model, jr.normal(getkey(), (4,)))
    images, labels = jr.uniform(getkey(), (8, 8, 8, 1)), jnp.arange(8) % 4
    config = LossConfig("margin", rho=0.7, logit_scale=3.0)
    loss = make_loss(config)(model, images, labels, jr.split(jr.key(0), 8))[0]
    logits = np.asarray(jax.vmap(model)(images), np.float64)
    rows = np.asarray(model.head.rows(), np.float64)
    lipschitz, terms = float(model.lipschitz()), []
    for z, y in zip(logits, np.asarray(labels), strict=True):
        gains = [0.7 * lipschitz * np.linalg.norm(rows[y] - row) for row in rows]
        terms.append(np.log(np.sum(np.exp(3 * (z + gains)))) - 3 * z[y])
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-5)


def test_margins_are_what_certifies(getkey):
    """The true class wins in spite of them just where its radius is above rho."""
    model = small_model(getkey(), lipschitz=2.0)
    images = jr.uniform(getkey(), (64, 8, 8, 1))
    logits = jax.vmap(model)(images)
    labels = jnp.argmax(logits, axis=1)
    radii = np.asarray(jnode.certify.radius(model, images))
    rho = float(np.median(radii))
    reach = rho * model.lipschitz()
    worst = losses.add_margins(logits, labels, model.head.rows(), reach)
    wins = np.asarray(jnp.argmax(worst, axis=1) == labels)
    clear = np.abs(radii - rho) > 1e-3  # the certificate allows for rounding
    assert clear.sum() > 32 and (wins == (radii > rho))[clear].all()


def test_margins_of_equal_rows_have_a_gradient():
    def total(rows):
        args = jnp.zeros((2, 3)), jnp.array([0, 1]), rows, jnp.asarray(1.0)
        return losses.add_margins(*args).sum()

    assert jnp.isfinite(jax.grad(total)(jnp.ones((3, 5)))).all()


def test_unrest_of_a_field_at_rest(getkey):
    """On fields whose trajectories are known: f = -y, and f = 0."""
    model = small_model(getkey(), "ortho", jnode.Solver("rk4", steps=4))
    decaying = eqx.tree_at(lambda m: m.blocks[0].field, model, Decay(1.0))
    resting = eqx.tree_at(lambda m: m.blocks[0].field, model, Decay(0.0))
    states = jr.normal(getkey(), (3, 4, 4, 4))
    mean = jnp.mean(jnp.abs(states), axis=(1, 2, 3))
    keys = jr.split(getkey(), 3)
    penalty = losses.steady_state_penalty(decaying, states, keys)
    # The integral of |y(1)| e^-(t - 1) over [1, 2], by the trapezoidal rule.
    assert penalty.tolist() == pytest.approx(
        (mean * (1 - np.exp(-1))).tolist(), rel=1e-2
    )
    assert (losses.steady_state_penalty(resting, states, keys) == 0).all()
    # J = -I is diagonal: the dominance is -1, the trace's mean is -1.
    speed = jnp.sqrt(jnp.mean(states**2, axis=(1, 2, 3)))
    expected = speed + 2 * jax.nn.softplus(-1.0)
    ours = losses.lyapunov_penalty(decaying, states, keys)
    assert ours.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    moving = eqx.tree_at(
        lambda m: m.blocks[0].field,
        model,
        jnode.OrthoField((4, 4, 4), time=True, key=getkey()),
    )
    with pytest.raises(ValueError, match="time-invariant"):
        losses.steady_state_penalty(moving, states, keys)


@pytest.mark.parametrize("name", slow_but(losses.PENALISED, "steady_state"))
def test_training_lowers_the_penalty(getkey, name):
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
        return eqx.apply_updates(model, updates), state, aux["penalty"]

    seen = []
    for _ in range(60):
        model, state, penalty = step(model, state)
        seen.append(float(penalty))
    assert seen[-1] < 0.8 * seen[0]


def test_explosion_is_named(tmp_path, monkeypatch):
    config = dataclasses.replace(
        TINY,
        model=jnode.ModelConfig("free", patch=7, features=50),
        solver=jnode.Solver("euler", steps=1),
        loss=LossConfig(logit_scale=1e38),
    )
    # Either the state or the loss is the first to be caught; both say what to do.
    with pytest.raises(RuntimeError, match="learning_rate|finite"):
        train(config, tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossConfig("hinge"), "natural, margin, ibp, trades, steady_state"),
        (lambda: LossConfig(rho=-1.0), "rho must be at least 0"),
        (lambda: LossConfig(epsilon=-0.1), "epsilon must be at least 0"),
        (lambda: LossConfig(logit_scale=0.0), "logit_scale must be positive"),
        (lambda: LossConfig("trades", steps=0), "steps must be at least 1"),
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
        (lambda: DataConfig(validation=-1), "validation must be at least 0"),
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


@pytest.mark.slow
def test_held_out_images_judge_and_do_not_train(tmp_path):
    held_out = DataConfig(validation=3900, pad=1)
    config = dataclasses.replace(TINY, epochs=1, data=held_out)
    train(config, tmp_path / "run", progress=False)
    assert RunDir(tmp_path / "run").read_config()[1]["num_train"] == 100
    some = {"num_examples": 20, "num_attacked": 5, "progress": False}
    proven = certify_run(tmp_path / "run", [0.1], **some)
    assert (proven["split"], proven["num_examples"]) == ("validation", 20)
    seen, judging = training_images(held_out), evaluation_images(held_out)
    whole = {image.tobytes() for image in jnode.data.load().images}
    parts = [{image.tobytes() for image in part.images} for part in (seen, judging)]
    assert len(judging) == 3900
    assert not parts[0] & parts[1] and parts[0] | parts[1] == whole
    assert evaluation_images(DataConfig()).split == "test"
