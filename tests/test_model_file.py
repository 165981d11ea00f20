"""The model file: what is written is read, what is damaged or hostile is refused."""

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode.models import MODELS, save
from jnode.models.file import FORMAT, from_dict
from jnode.train import PRESETS, TrainConfig, get_preset
from tests.helpers import slow_but

ROOT = Path(__file__).parent.parent
CONFIG = jnode.ModelConfig("gradient_flow", features=4, patch=2, hidden=6, lipschitz=4)
SOLVER = jnode.Solver("euler", steps=2)
SIZES = {"image_shape": (8, 8, 1), "classes": 4}


def built(config=CONFIG, solver=SOLVER, sizes=SIZES):
    return jnode.build(config, solver, **sizes, key=jr.key(0))


def saved_model(folder, config=CONFIG, solver=SOLVER, sizes=SIZES):
    model = built(config, solver, sizes)
    save(folder, model, config, solver, **sizes)
    return model


def forge(folder, raw):
    """Other weights, and the hash that they have."""
    (folder / "model.eqx").write_bytes(raw)
    describe(folder, sha256=hashlib.sha256(raw).hexdigest())


def describe(folder, **changes):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def leaves(model):
    return [np.asarray(x) for x in jax.tree.leaves(model) if eqx.is_array(x)]


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(leaves(a), leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", slow_but(MODELS, "contractive", "odenet"))
def test_every_model_comes_back(tmp_path, name):
    config, solver = MODELS[name]
    sizes = {"image_shape": (32, 32, 3), "classes": 10}
    if "cifar" not in name:
        sizes["image_shape"] = (28, 28, 1)
    model = saved_model(tmp_path, config, solver, sizes)
    assert_same(jnode.load(tmp_path), model)
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "model.eqx"}


def test_what_stands_there(tmp_path):
    model = saved_model(tmp_path / "new" / "folder")
    facts = json.loads((tmp_path / "new" / "folder" / "model.json").read_text())
    assert facts["format"] == FORMAT and facts["jnode"] == jnode.__version__
    assert facts["image_shape"] == [8, 8, 1] and facts["classes"] == 4
    assert facts["solver"]["name"] == "euler" and facts["model"]["hidden"] == 6
    assert facts["weights"]["head.weight"] == {"shape": [4, 64], "dtype": "float32"}
    assert len(facts["weights"]) == len(leaves(model))


def test_loading_is_light(tmp_path):
    """Neither optimiser nor checkpoints are imported."""
    saved_model(tmp_path)
    code = f"""
    import sys, jnode
    model = jnode.load({str(tmp_path)!r})
    assert not {{"optax", "orbax", "jnode.train", "jnode.data"}} & set(sys.modules)
    print(type(model.blocks[0].field).__name__)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout == "GradientFlowField\n", done.stderr


def test_what_is_loaded_is_constrained(tmp_path):
    """Whatever becomes of its weights, what is certified stays true."""
    saved_model(tmp_path)
    wild = jax.tree.map(
        lambda x: 30 * x if eqx.is_inexact_array(x) else x, jnode.load(tmp_path)
    )
    images = jr.uniform(jr.key(1), (2, 8, 8, 1))
    a, b = eqx.filter_jit(lambda model, x: jax.vmap(model.embed)(x))(wild, images)
    ratio = jnp.linalg.norm(a - b) / jnp.linalg.norm(images[0] - images[1])
    bound = eqx.filter_jit(lambda model: model.lipschitz())(wild)
    assert float(ratio) <= float(bound) < 1.01


def test_other_weights_for_the_same_model_replace_it(tmp_path):
    saved_model(tmp_path)
    other = jnode.build(CONFIG, SOLVER, **SIZES, key=jr.key(5))
    finer = jnode.Solver("rk4", steps=3)
    save(tmp_path, other, CONFIG, finer, **SIZES)
    assert_same(jnode.load(tmp_path), other.with_solver(finer))


def test_resolved_or_other_models_are_not_saved(tmp_path):
    resolved, _ = jnode.resolve(built())
    wider = dataclasses.replace(CONFIG, hidden=7)
    for model, config in ((resolved, CONFIG), (built(), wider)):
        with pytest.raises(ValueError, match="model must be what config describes"):
            save(tmp_path / "no", model, config, SOLVER, **SIZES)
    assert not (tmp_path / "no").exists()


def test_precision_is_kept(tmp_path):
    short = saved_model(tmp_path / "short")
    half = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if eqx.is_inexact_array(x) else x, short
    )
    save(tmp_path / "half", half, CONFIG, SOLVER, **SIZES)
    assert_same(jnode.load(tmp_path / "half"), half)
    with jax.enable_x64(True):
        long = saved_model(tmp_path / "long")
        assert long.head.weight.dtype == jnp.float64
        assert_same(jnode.load(tmp_path / "long"), long)
        assert_same(jnode.load(tmp_path / "short"), short)
    rounded = jnode.load(tmp_path / "long")
    np.testing.assert_array_equal(
        rounded.head.weight, np.asarray(long.head.weight).astype(np.float32)
    )


def test_absent(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model: .* no model\.json"):
        jnode.load(tmp_path)
    saved_model(tmp_path)
    (tmp_path / "model.eqx").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.eqx"):
        jnode.load(tmp_path)


def flip(raw):
    """One bit of the last number."""
    return raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "whose sha256 differs"),
        (lambda raw: raw[:-50], "sha256 differs|cut short"),
        (lambda raw: raw[:500], "it has 500 bytes for .* cut short"),
        (lambda raw: b"x" * len(raw), "sha256 differs"),
        (lambda raw: raw * 50, "bytes for"),
    ],
)
def test_damaged_weights(tmp_path, damage, message):
    saved_model(tmp_path)
    path = tmp_path / "model.eqx"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"model\.eqx is not the file .*({message})"):
        jnode.load(tmp_path)


def npy(*arrays):
    """One after another, as they lie in the file."""
    buffer = io.BytesIO()
    for array in arrays:
        np.save(buffer, array)
    return buffer.getvalue()


def test_forged_weights(tmp_path):
    """With a hash that fits: arrays of other shapes or types, too few, too many."""
    arrays = leaves(saved_model(tmp_path))
    forge(tmp_path, npy(*arrays))
    assert_same(jnode.load(tmp_path), built())
    turned = [x.T if x.ndim == 2 else x for x in arrays]
    whole = [x.astype(np.int32) for x in arrays]
    forgeries = {
        "an array is": [turned, whole, arrays[::-1]],
        "cannot be read": [[*arrays[:-1], arrays[-1][:0]], arrays[:-1]],
        "holds more": [[*arrays, np.zeros(3, np.float32)]],
    }
    for message, forged in forgeries.items():
        for some in forged:
            forge(tmp_path, npy(*some))
            with pytest.raises(ValueError, match=rf"model\.eqx .*{message}|bytes for"):
                jnode.load(tmp_path)


def test_a_newer_format_says_so(tmp_path):
    saved_model(tmp_path)
    describe(tmp_path, format=FORMAT + 1, jnode="9.9", model={"unheard": "of"})
    with pytest.raises(ValueError, match=r"newer jnode, 9\.9, in format 2.*upgrade"):
        jnode.load(tmp_path)


def test_another_architecture_is_named(tmp_path):
    saved_model(tmp_path)
    model = json.loads((tmp_path / "model.json").read_text())["model"]
    describe(tmp_path, model=model | {"hidden": 7})
    words = r"another architecture .* float32\[3, 3, 6, 4\] there and .*\[3, 3, 7, 4\]"
    with pytest.raises(ValueError, match=words):
        jnode.load(tmp_path)
    # An array of petabytes is refused before it is made.
    huge = model | {"features": 10**6, "hidden": 10**9}
    describe(tmp_path, model=huge)
    with pytest.raises(ValueError, match="another architecture"):
        jnode.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "new"},
        {"format": None},
        {"classes": "10"},
        {"classes": True},
        {"image_shape": [8, 8]},
        {"image_shape": 8},
        {"model": "ortho"},
        {"model": {"features": "4"}},
        {"model": {"colour": 1}},
        {"solver": {"name": "magic"}},
        {"solver": {"name": ["rk4"]}},
        {"weights": []},
        {"weights": {"head.weight": {"shape": [4, "64"], "dtype": "float32"}}},
        {"weights": {"head.weight": {"shape": [4, 64], "dtype": "object"}}},
    ],
)
def test_damaged_descriptions(tmp_path, changes):
    saved_model(tmp_path)
    describe(tmp_path, **changes)
    with pytest.raises(ValueError, match=r"model\.json is damaged"):
        jnode.load(tmp_path)
    for text in ("{", "[]", "1", ""):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(ValueError, match=r"model\.json is damaged"):
            jnode.load(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "model.eqx"])
def test_links_out_of_the_folder_are_refused(tmp_path, name):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    saved_model(inside)
    outside.mkdir()
    (inside / name).rename(outside / name)
    (inside / name).symlink_to(outside / name)
    with pytest.raises(ValueError, match=f"{name} is a link out of its folder"):
        jnode.load(inside)
    before = (outside / name).read_bytes()
    with pytest.raises(ValueError, match=f"{name} is a link out of its folder"):
        saved_model(inside)
    assert (outside / name).read_bytes() == before


def test_a_save_that_is_cut_short_is_noticed(tmp_path, monkeypatch):
    """Between its two files, over an older model."""
    saved_model(tmp_path)
    old = (tmp_path / "model.json").read_bytes()
    other = jnode.build(CONFIG, SOLVER, **SIZES, key=jr.key(5))

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("jnode.models.file.write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, other, CONFIG, SOLVER, **SIZES)
    assert (tmp_path / "model.json").read_bytes() == old
    with pytest.raises(ValueError, match="sha256 differs"):
        jnode.load(tmp_path)


def test_configurations_survive_json():
    for name in PRESETS:
        config = get_preset(name)
        text = json.dumps(dataclasses.asdict(config))
        assert from_dict(TrainConfig, json.loads(text)) == config


@dataclasses.dataclass(frozen=True)
class Part:
    sides: tuple[int, ...] = ()
    scale: float | None = None


@dataclasses.dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    one: Part | None = None
    segments: int | tuple[int, ...] = 1
    pair: tuple[str, float] = ("a", 1.0)


def test_tuples_and_nested_parts_survive_json():
    whole = Whole((Part((1, 2)), Part(scale=2)), Part(()), (3, 4), ("b", 0.5))
    there = json.loads(json.dumps(dataclasses.asdict(whole)))
    assert from_dict(Whole, there) == whole
    assert from_dict(Whole, {"parts": [], "segments": 2}) == Whole((), segments=2)
    for wrong, words in (
        ({}, "Whole needs parts"),
        ({"parts": [], "pair": ["b"]}, "pair must be of the type"),
        ({"parts": [], "segments": [1, "2"]}, "segments must be of the type int"),
        ({"parts": [[]]}, "parts must be of the type Part"),
        ({"parts": [], "one": {"size": 1}}, "Part has no size"),
    ):
        with pytest.raises(ValueError, match=words):
            from_dict(Whole, wrong)
