"""Models that come with the package, and their cards."""

import io
import json
import runpy
import sys
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode.cards import check_card
from jnode.models import save, shipped
from jnode.train import DataConfig, LossConfig, RunDir, TrainConfig
from tests.helpers import slow_but

ROOT = Path(__file__).parent.parent
LARGEST = 6_000_000  # bytes of all weights together, as a wheel packs them


@pytest.mark.parametrize("name", slow_but(shipped.names(), "certified_mnist"))
def test_a_shipped_model_is_what_its_card_tells(name):
    model, card = jnode.pretrained(name), shipped.card(name)
    arrays = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    assert card["parameters"] == sum(x.size for x in arrays)
    for x in arrays:  # rounded, so that they take half the space
        np.testing.assert_array_equal(x, x.astype(jnp.bfloat16).astype(x.dtype))
    bound = card["lipschitz"]["certified_upper_bound"]
    assert float(model.lipschitz()) == pytest.approx(bound, rel=1e-3)
    assert card["lipschitz"]["empirical_lower_bound"] <= bound
    shares = [row["certified_accuracy"] for row in card["certified_accuracy"]]
    assert [card["clean_accuracy"], *shares] == sorted(
        [card["clean_accuracy"], *shares], reverse=True
    )
    config, _ = RunDir(shipped.folder(name)).read_config()
    assert config.data.name == card["dataset"] and config.epochs == card["epochs"]
    logits = jax.jit(jax.vmap(model))(jnp.full((2, *model.image_shape), 0.5))
    assert logits.shape[1] >= 10 and jnp.all(jnp.isfinite(logits))


def test_shipped_weights_are_small():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in shipped.WEIGHTS.rglob("*"):
            archive.write(path)
    assert packed.tell() < LARGEST
    assert shipped.names(), "the package comes with a model"


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="name must be one of .*, not 'nothing'"):
        jnode.pretrained("nothing")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An untrained model, shipped as "tiny"."""
    folder = tmp_path / "tiny"
    config = TrainConfig(
        data=DataConfig("mnist5k"),
        model=jnode.ModelConfig("gradient_flow", patch=7, features=49, hidden=8),
        solver=jnode.Solver("euler", steps=2),
        loss=LossConfig("natural"),
    )
    sizes = {"image_shape": (28, 28, 1), "classes": 10}
    model = jnode.build(config.model, config.solver, **sizes, key=jr.key(0))
    save(folder, model, config.model, config.solver, **sizes)
    RunDir(folder).write_config(config, **sizes, num_train=9, versions={})
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    test = jnode.data.load("mnist5k", split="test").take(40)
    images = np.asarray(jnode.data.to_float(jnp.asarray(test.images)))
    radii = jnode.certify.certified_radii(model, images, test.labels)
    radius = 1e-3
    card = {
        "num_examples": 40,
        "clean_accuracy": float(np.mean(radii >= 0)),
        "certified_accuracy": [
            {
                "norm": "l2",
                "radius": radius,
                "certified_accuracy": float(np.mean(radii >= radius)),
            }
        ],
    }
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def test_a_card_is_checked(tiny, monkeypatch, capsys):
    rows = check_card("tiny")
    assert [row["radius"] for row in rows] == [0.0, 1e-3]
    assert all(row["card"] == row["found"] for row in rows)
    monkeypatch.setattr(sys, "argv", ["certify.py", "tiny"])
    certify = runpy.run_path(str(ROOT / "scripts" / "certify.py"))
    certify["main"]()
    assert "L2 0.001" in capsys.readouterr().out
    card = json.loads((tiny / "card.json").read_text())
    card["clean_accuracy"] += 0.05
    (tiny / "card.json").write_text(json.dumps(card))
    with pytest.raises(RuntimeError, match="accuracy on its card"):
        certify["main"]()
