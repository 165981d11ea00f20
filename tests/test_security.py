"""What somebody else's run folder can do: nothing but be read."""

import dataclasses
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import jnode
from jnode import _files, report
from jnode.train import RunDir
from jnode.train.checkpoints import Checkpoints
from tests.test_checkpoints import FACTS, saved, tree
from tests.test_model_file import forge, saved_model
from tests.test_report import HOSTILE, example


class Evil:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_pickle_is_opened(tmp_path):
    trap = tmp_path / "trapped"
    pickled = np.empty(1, object)
    pickled[0] = Evil(trap)
    saved_model(tmp_path / "model")
    buffer = io.BytesIO()
    np.save(buffer, pickled, allow_pickle=True)
    for evil in (buffer.getvalue(), pickle.dumps(Evil(trap))):
        # As long as it should be, and with a hash that fits.
        size = (tmp_path / "model" / "model.eqx").stat().st_size
        forge(tmp_path / "model", evil + b"." * (size - len(evil)))
        with pytest.raises(ValueError, match="cannot be read as the weights"):
            jnode.load(tmp_path / "model")
    kept = saved(tmp_path, [None])
    for path in kept.path(1).rglob("*"):
        if path.is_file():
            path.write_bytes(pickle.dumps(Evil(trap)))
    with pytest.raises(ValueError, match="no checkpoint that can be read"):
        Checkpoints(tmp_path, writing=True).restore(tree(), FACTS)
    assert not trap.exists()
    # The trap is one.
    pickle.loads(pickle.dumps(Evil(trap)))
    assert trap.exists()


def test_no_path_leads_out_of_a_run(tmp_path):
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    run.mkdir()
    (outside / "precious").write_text("mine")
    config = jnode.train.get_preset("ortho")
    RunDir(run).write_config(config, image_shape=(28, 28, 1))
    written = json.loads((run / "config.json").read_text())
    written["train"]["data"]["dir"] = str(outside)
    (run / "config.json").write_text(json.dumps(written))
    assert RunDir(run).read_config()[0].data.dir is None
    (run / "checkpoints").symlink_to(outside)
    with pytest.raises(ValueError, match="checkpoints is a link out of its folder"):
        RunDir(run).read_config()
    with pytest.raises(ValueError, match="link out of its folder"):
        RunDir(run).create(overwrite=True)
    with pytest.raises(ValueError, match="link out of its folder"):
        jnode.train.load_best(run)
    assert (outside / "precious").read_text() == "mine"


def test_temporary_files_follow_no_link(tmp_path, monkeypatch):
    monkeypatch.setattr(_files.os, "getpid", lambda: 1)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".model.eqx.1.tmp").symlink_to(victim)
    saved_model(tmp_path)
    assert victim.read_text() == "mine"


def test_reports_show_hostile_words_and_do_not_run_them(tmp_path):
    def hostile(value):
        if isinstance(value, dict):
            return {k: hostile(v) for k, v in value.items()}
        if isinstance(value, list):
            return [hostile(v) for v in value]
        return HOSTILE if isinstance(value, str) else value

    run = example("ortho")
    facts = run.evaluation | {"flags": ["flag"]}
    free = {"attacks", "worst_case", "certified_accuracy"}  # names and norms are chosen
    facts = {k: v if k in free else hostile(v) for k, v in facts.items()}
    run = dataclasses.replace(
        run, name=HOSTILE, config=hostile(run.config), evaluation=facts
    )
    page = report.write([run], tmp_path / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
