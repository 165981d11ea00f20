"""Certifying a run folder: models without a certificate, recorded steps, bad radii."""

from typing import Any

import jax.random as jr
import pytest

import jnode
from jnode.models import save
from jnode.runs import certify_run
from jnode.train import LossConfig, RunDir, TrainConfig


@pytest.fixture
def adaptive_run(tmp_path):
    """An untrained run of an adaptive model."""
    config = TrainConfig(
        model=jnode.ModelConfig("gradient_flow", patch=7, features=49),
        solver=jnode.Solver("heun", rtol=1.0, atol=1.0),
        loss=LossConfig("natural"),
    )
    run = RunDir(tmp_path / "run")
    run.create(overwrite=False)
    shape = (28, 28, 1)
    run.write_config(config, image_shape=shape, classes=10, num_train=9, versions={})
    key = jr.key(0)
    sizes = {"image_shape": shape, "classes": 10}
    model = jnode.build(config.model, config.solver, **sizes, key=key)
    save(run.path, model, config.model, config.solver, **sizes)
    return run.path


@pytest.mark.slow
def test_adaptive_run_is_refused_or_frozen(adaptive_run):
    options: dict[str, Any] = dict(
        num_examples=10, num_attacked=4, steps=3, progress=False
    )
    with pytest.raises(ValueError, match=r"No certificate: heun.*--freeze"):
        certify_run(adaptive_run, [0.1], **options)
    found = certify_run(adaptive_run, [0.1, 0.0], freeze=True, **options)
    assert found["frozen_grid"][0] == 0 and found["frozen_grid"][-1] == 1
    assert "on a grid of" in found["solver"]
    assert [row["radius"] for row in found["attacked"]["rows"]] == [0.1]
    with pytest.raises(ValueError, match="radius must be at least 0"):
        certify_run(adaptive_run, [-0.1], **options)
