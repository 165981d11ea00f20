"""The report: right numbers, whole in itself, harmless."""

import json
import re

import numpy as np
import pytest

from jnode import report
from jnode.report import Pictures, RunReport, figures


def make_run(name="ortho", certified=True, flags=()):
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(3, 8, 8, 1)).astype(np.float32)
    attack = dict(name="pgd", norm="linf", epsilon=0.1, steps=40, restarts=1)
    l2 = attack | dict(norm="l2", epsilon=0.5, robust_accuracy=0.7, seconds=1.0)
    evaluation = dict(
        dataset="mnist5k",
        split="test",
        num_examples=3,
        seed=0,
        solver="rk4x2",
        clean_accuracy=0.95,
        attacks=[attack | dict(robust_accuracy=0.4375, seconds=1.0), l2],
        worst_case=[
            dict(norm="linf", epsilon=0.1, robust_accuracy=0.4375),
            dict(norm="l2", epsilon=0.5, robust_accuracy=0.7),
        ],
        certified_accuracy=[
            dict(norm="l2", radius=r, certified_accuracy=0.95 - r) for r in (0, 0.5, 0.7)
        ]
        if certified
        else [],
        certificate="up to L = 1.6" if certified else "none",
        flags=list(flags),
        nfe=8.0,
        versions={"jax": "0.10"},
        device="cpu",
    )
    times = np.linspace(0, 1, 3, dtype=np.float32)
    pictures = Pictures(
        attack="pgd-40 linf 0.1",
        clean=images,
        adversarial=np.clip(images + 0.1, 0, 1),
        labels=np.arange(3),
        clean_predictions=np.arange(3),
        adversarial_predictions=np.asarray([0, 2, 2]),
        times=times,
        distances=rng.uniform(0.5, 1, size=(3, 3)).astype(np.float32),
        gronwall=np.exp(times),
        log_norm=np.ones(3, np.float32),
    )
    metrics = [dict(step=3, epoch=1, loss=1.0, accuracy=0.9, nfe=8.0, seconds=2.0)]
    return RunReport(name, {"num_train": 96}, evaluation, metrics, pictures)


def test_table():
    text = report.table([make_run("a"), make_run("b", certified=False)])
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    found = {row[0]: row[1:] for row in rows}
    assert found["model"] == ["a", "b"]
    assert found["clean"] == ["95.0", "95.0"]
    assert found["pgd-40 Linf 0.1"] == ["43.8", "43.8"]
    assert found["certified L2 0.5"] == ["45.0", "–"]
    assert "certified L2 0.7" not in found  # no attack stands beside it


def test_page_is_whole_and_escapes(tmp_path):
    hostile = "<script>alert('x')</script>"
    runs = [make_run(hostile, flags=[hostile]), make_run("free", certified=False)]
    page = report.write(runs, tmp_path / "new" / "report.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 3
    sources = re.findall(r"(?:src|href)=['\"]([^'\"]{0,30})", page)
    assert len(sources) >= 7
    assert all(s.startswith("data:image/png;base64,") for s in sources)
    assert "http" not in re.sub(r"base64,[^']*", "", page)
    assert "proven lower bound" in page and "empirical upper bound" in page
    assert not list((tmp_path / "new").glob("*.tmp"))


def test_figures_have_labelled_axes():
    runs = [make_run("a"), make_run("b")]
    drawn = [
        figures.robustness(runs, "linf"),
        figures.certified(runs),
        figures.trajectories(runs[0].pictures, "a"),
        figures.training(runs),
    ]
    for figure in drawn:
        (axes,) = figure.axes
        assert axes.get_xlabel() and axes.get_ylabel()
        assert axes.get_legend() is not None
    assert len(figures.images(runs[0].pictures, "a").axes) == 9


def test_read_run_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        report.read_run(tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        report.write([], tmp_path / "report.html")


def test_pictures_survive_the_disk(tmp_path):
    run = make_run()
    run.pictures.save(tmp_path)
    with np.load(tmp_path / "pictures.npz", allow_pickle=False) as file:
        assert str(file["attack"]) == run.pictures.attack
        assert (file["clean"] == run.pictures.clean).all()
    json.dumps(run.evaluation)
