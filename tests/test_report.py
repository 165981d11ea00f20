"""The report: true numbers, figures that can be read, one page that is safe."""

import dataclasses
import json
import re
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from jnode import report
from jnode.report import Pictures, RunReport, figures, solve_figures
from jnode.report.style import to_png
from jnode.train import TrainConfig
from jnode.train.run_dir import FORMAT
from tests.helpers import slow_but

HOSTILE = "</title><script>alert('x')</script> \"'& $\\frac$ |"


def evaluation(clean=0.9, robust=0.6, proven=0.7):
    def attack(name, norm, epsilon, steps, accuracy):
        found = dict(name=name, norm=norm, epsilon=epsilon, steps=steps, restarts=1)
        return found | dict(robust_accuracy=accuracy, seconds=1.0)

    certified = [
        dict(
            norm="l2",
            radius=0.25 * i,
            certified_accuracy=max((proven or 0) - 0.1 * i, 0.0),
        )
        for i in range(9)
    ]
    return dict(
        dataset="mnist5k",
        split="test",
        num_examples=1000,
        num_train=4000,
        seed=0,
        solver="rk4x4",
        clean_accuracy=clean,
        attacks=[
            attack("fgsm", "linf", 0.1, 1, robust + 0.1),
            attack("pgd", "linf", 0.1, 40, robust),
            attack("pgd", "l2", 0.5, 20, robust + 0.15),
            attack("gaussian", "sigma", 50 / 255, 1, 0.876),
        ],
        worst_case=[
            dict(norm="l2", epsilon=0.5, robust_accuracy=robust + 0.15),
            dict(norm="linf", epsilon=0.1, robust_accuracy=robust - 0.013),
            dict(norm="sigma", epsilon=50 / 255, robust_accuracy=0.876),
        ],
        certified_accuracy=certified if proven else [],
        certificate="up to L = 1.65" if proven else "none: nothing bounds it",
        flags=[],
        nfe=16.0,
        versions={"jax": "0.10.2"},
        device="cpu",
    )


def pictures(pairs=5, envelope=1.0, channels=1, **changes):
    rng = np.random.default_rng(0)
    clean = rng.random((pairs, 8, 8, channels), np.float32)
    times = np.linspace(0, 1, 5).astype(np.float32)
    rates = rng.random((pairs, 1)).astype(np.float32)
    fields: dict[str, Any] = dict(
        attack="pgd-40 linf 0.1",
        clean=clean,
        adversarial=np.clip(clean + 0.1, 0, 1),
        labels=np.arange(pairs),
        clean_predictions=np.arange(pairs),
        adversarial_predictions=np.arange(pairs) + 1,
        times=times,
        distances=0.3 * np.exp(rates * times),
        gronwall=np.exp(np.float32(envelope) * times),
        log_norm=np.exp(np.float32(envelope / 2) * times),
        step_lengths=np.asarray([16.3, 0.22, 0.025, 0.0, 1.5], np.float32),
        step_blocks=np.asarray([0, 0, 0, 0, 1]),
    )
    return Pictures(**fields | changes)


def example(name="ortho", *, metrics=True, **kwargs):
    rows = [
        dict(step=10 * i, epoch=i, loss=3 / i, accuracy=0.5, nfe=16.0, seconds=2.0 * i)
        for i in range(1, 6)
    ]
    return RunReport(
        name=name,
        config={"train": {"model": {"field": "ortho"}, "epochs": 5}, "num_train": 4000},
        evaluation=evaluation(**kwargs),
        metrics=rows if metrics else [],
        pictures=pictures(),
    )


@pytest.fixture
def three():
    unconstrained = example("unconstrained", clean=0.95, robust=0.1, proven=None)
    envelope = np.full(5, np.inf, np.float32)
    p = pictures()
    lost = dataclasses.replace(p, gronwall=envelope, log_norm=envelope)
    unconstrained = dataclasses.replace(unconstrained, pictures=lost)
    return [
        example("ortho"),
        example("contractive", clean=0.97, proven=0.8),
        unconstrained,
    ]


@pytest.fixture
def folder(tmp_path):
    """A run folder as the scripts leave it."""
    run = tmp_path / "ortho"
    run.mkdir()
    train = dataclasses.asdict(TrainConfig())
    shape = [8, 8, 1]
    facts = dict(format=FORMAT, train=train, image_shape=shape, classes=6)
    facts["num_train"] = 4000
    (run / "config.json").write_text(json.dumps(facts))
    (run / "evaluation.json").write_text(json.dumps(evaluation()))
    lines = [json.dumps(row) for row in example().metrics]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    pictures().save(run)
    return run


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def grid(text):
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines()]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


# The table.


def test_table_holds_the_numbers(three):
    found = grid(report.table(three))
    assert found["accuracy in %"] == ["ortho", "contractive", "unconstrained"]
    assert found["clean"] == ["90.0", "97.0", "95.0"]
    assert found["pgd-40 Linf 0.1"] == ["60.0", "60.0", "10.0"]
    assert found["worst case Linf 0.1"] == ["58.7", "58.7", "8.7"]
    assert found["gaussian σ 0.196"] == ["87.6"] * 3
    assert found["certified L2 0.5"] == ["50.0", "60.0", "–"]
    assert found["NFE"] == ["16"] * 3
    assert found["training seconds"] == ["10"] * 3


def test_table_keeps_proof_and_experiment_apart(three):
    lines = [line.split("|")[1].strip() for line in report.table(three).splitlines()]
    empirical = lines.index("**accuracy under attack: empirical upper bound**")
    proven = lines.index("**certified accuracy: proven lower bound**")
    assert empirical < lines.index("pgd-40 Linf 0.1") < proven
    assert lines.index("certified L2 0.5") > proven


def test_table_shows_only_radii_that_were_attacked_unless_none_was(three):
    assert "certified L2 0.25" not in grid(report.table(three))
    run = three[0]
    unattacked = [row for row in run.evaluation["attacks"] if row["norm"] != "l2"]
    alone = dataclasses.replace(
        run, evaluation=run.evaluation | {"attacks": unattacked}
    )
    found = grid(report.table([alone]))
    assert found["certified L2 0.25"] == ["60.0"]
    assert "certified L2 0" not in found


def test_table_shows_what_intervals_certify_beside_attacks(three):
    rows = [{"norm": "linf", "radius": 0.1, "certified_accuracy": 0.4}]
    of_all = {"num_examples": 1000, "certified_accuracy": rows}
    some = of_all | {"num_examples": 5}
    runs = [dataclasses.replace(three[0], intervals=of_all), three[1]]
    assert grid(report.table(runs))["certified Linf 0.1"] == ["40.0", "–"]
    found = grid(report.table([dataclasses.replace(three[0], intervals=some)]))
    assert found["certified Linf 0.1, 5 images"] == ["40.0"]


def test_table_lines_are_equally_long_and_names_cannot_break_them():
    text = report.table([example("a|b\nc"), example("plain")])
    assert len({len(line) for line in text.splitlines()}) == 1
    assert grid(text)["accuracy in %"] == ["a\\|b c", "plain"]


def test_equal_attacks_keep_the_lowest_accuracy_and_restarts_are_told_apart():
    run = example()
    again = run.evaluation["attacks"][1] | {"robust_accuracy": 0.55}
    restarted = again | {"restarts": 5, "robust_accuracy": 0.51}
    attacks = [*run.evaluation["attacks"], again, restarted]
    run = dataclasses.replace(run, evaluation=run.evaluation | {"attacks": attacks})
    found = grid(report.table([run]))
    assert found["pgd-40 Linf 0.1"] == ["55.0"]
    assert found["pgd-40x5 Linf 0.1"] == ["51.0"]


def test_runs_of_one_name_are_numbered():
    found = grid(report.table([example("run"), example("run"), example("other")]))
    assert found["accuracy in %"] == ["run (1)", "run (2)", "other"]


def test_no_training_time_without_metrics():
    assert grid(report.table([example(metrics=False)]))["training seconds"] == ["–"]


# Figures.


def points(line):
    """What a line goes through, each point an x and a y."""
    return np.asarray(line.get_xydata(), float)


def legend_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_robustness_figure(three):
    figure = figures.robustness(three)
    assert legend_of(figure) == ["ortho", "contractive", "unconstrained"]
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert [("ε" in s, "σ" in s) for s in labels] == [(True, False)] * 2 + [
        (False, True)
    ]
    assert all("pixels in [0, 1]" in label for label in labels)
    assert "%" in figure.axes[0].get_ylabel()
    linf = figure.axes[0].lines[0]
    np.testing.assert_allclose(points(linf), [[0, 90], [0.1, 58.7]])
    markers = {str(line.get_marker()) for line in figure.axes[0].lines}
    colours = {line.get_color() for line in figure.axes[0].lines}
    assert len(markers) == len(colours) == 3


def test_certified_figure_draws_the_proof_solid_and_attacks_dashed(three):
    figure = figures.certified(three)
    axes = figure.axes[0]
    assert "radius" in axes.get_xlabel() and "%" in axes.get_ylabel()
    assert legend_of(figure)[:3] == ["ortho", "contractive", "unconstrained"]
    assert legend_of(figure)[3:] == [
        "attacked (upper bound)",
        "certified (lower bound)",
    ]
    attacked, proven, *_, last = axes.lines
    assert len(axes.lines) == 5  # nothing is proven about the unconstrained one
    assert [line.get_linestyle() for line in axes.lines] == ["--", "-", "--", "-", "--"]
    assert proven.get_color() == attacked.get_color() != last.get_color()
    np.testing.assert_allclose(points(attacked), [[0, 90], [0.5, 75]])
    np.testing.assert_allclose(points(proven)[2], [0.5, 50])
    np.testing.assert_allclose(points(last), [[0, 95], [0.5, 25]])
    assert len(axes.collections) == 2  # a gap for each certificate


@pytest.mark.parametrize("channels", [1, 3])
def test_images_figure(channels):
    names = ("zero", "one", "two", "three", "a very long class name")
    p = pictures(channels=channels, class_names=names)
    figure = figures.images(p, count=4)
    assert len(figure.axes) == 12
    titles = [axes.get_title() for axes in figure.axes[:8]]
    assert titles[:2] == ["✓ zero", "✓ one"]
    assert titles[4:] == ["✗ one", "✗ two", "✗ three", "✗ a very lon…"]
    assert "× 5" in figure.axes[8].get_ylabel()
    magnified = np.asarray(figure.axes[8].images[0].get_array())
    change = (p.adversarial[0] - p.clean[0]).reshape(magnified.shape)
    np.testing.assert_allclose(magnified, 0.5 + 5 * change, atol=1e-5)


def test_images_figure_of_an_attack_that_changed_nothing():
    p = pictures()
    same = dataclasses.replace(p, adversarial=p.clean)
    assert to_png(figures.images(same)).startswith(b"\x89PNG")


def test_trajectories_start_at_one_inside_their_envelope(three):
    figure = solve_figures.trajectories(three)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "ortho",
        "contractive",
        "unconstrained",
    ]
    axes = figure.axes[0]
    assert axes.get_xlabel() == "time t of the solve"
    assert axes.get_ylabel() == "‖y(t) − z(t)‖ / ‖y(0) − z(0)‖"
    *measured, gronwall, log_norm = axes.lines
    assert len(measured) == 5
    np.testing.assert_allclose([points(line)[0, 1] for line in measured], 1)
    np.testing.assert_allclose(points(gronwall)[-1, 1], np.e, rtol=1e-5)
    np.testing.assert_allclose(points(log_norm)[-1, 1], np.exp(0.5), rtol=1e-5)
    unbounded = figure.axes[2]
    assert len(unbounded.lines) == 5
    assert "nothing bounds" in unbounded.texts[0].get_text()


def test_trajectories_that_span_decades_get_a_log_axis():
    small, p = example("small"), pictures()
    grown = dataclasses.replace(p, distances=p.distances * np.exp(6 * p.times))
    large = dataclasses.replace(example("large"), pictures=grown)
    assert solve_figures.trajectories([small]).axes[0].get_yscale() == "linear"
    assert solve_figures.trajectories([small, large]).axes[0].get_yscale() == "log"


def test_an_envelope_far_above_the_pairs_leaves_the_frame_and_says_so():
    p = pictures(envelope=8.0, log_norm=np.full(5, 2.0, np.float32))
    run = dataclasses.replace(example(), pictures=p)
    axes = solve_figures.trajectories([run]).axes[0]
    assert axes.get_ylim()[1] < 10
    assert "2,981" in axes.texts[0].get_text()


def test_pairs_that_do_not_differ_at_the_start_are_left_out():
    p = pictures()
    p.distances[2] = 0
    run = dataclasses.replace(example(), pictures=p)
    assert len(solve_figures.trajectories([run]).axes[0].lines) == 4 + 2


def test_lengths_of_steps_by_block(three):
    axes = solve_figures.step_lengths(three).axes[0]
    assert axes.get_yscale() == "log"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["block 1", "block 2"]
    bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
    bars = [bar for bar in bars if np.isfinite(bar.get_height())]
    # A step of no length has no bar.
    assert [bar.get_height() for bar in bars] == pytest.approx([16.3, 0.22, 0.025, 1.5])
    assert bars[-1].get_x() - bars[-2].get_x() == pytest.approx(3)
    p = pictures(step_blocks=np.zeros(5, int))
    axes = solve_figures.step_lengths([dataclasses.replace(example(), pictures=p)]).axes
    assert [t.get_text() for t in axes[0].get_xticklabels()] == list("12345")


def test_training_figure(three):
    figure = figures.training(three)
    assert {axes.get_xlabel() for axes in figure.axes} == {"epoch"}
    np.testing.assert_allclose(points(figure.axes[0].lines[0])[:, 1], 50)
    np.testing.assert_allclose(points(figure.axes[1].lines[0])[0, 1], 3)
    assert legend_of(figure) == ["ortho", "contractive", "unconstrained"]


@pytest.mark.parametrize(
    "draw, what",
    [
        (figures.robustness, "an attack"),
        (figures.certified, "a certificate"),
        (solve_figures.trajectories, "pictures"),
        (solve_figures.step_lengths, "pictures"),
        (figures.training, "metrics"),
    ],
)
def test_figures_of_nothing_say_what_is_missing(draw, what):
    bare = dataclasses.replace(example(proven=None), metrics=[], pictures=None)
    bare.evaluation.update(attacks=[], worst_case=[])
    with pytest.raises(ValueError, match=f"must hold {what}"):
        draw([bare])


# No run name may be taken for mathematics, hidden from the legend, or lack a glyph.
@pytest.mark.parametrize(
    "name", slow_but([HOSTILE, "$x", "_hidden", "文字", "x" * 300], HOSTILE)
)
def test_figures_survive_any_name(name):
    run = example(name)
    found = [figures.certified([run]), figures.robustness([run])]
    found += [solve_figures.trajectories([run]), figures.training([run])]
    found += [solve_figures.step_lengths([run])]
    for figure in found:
        assert to_png(figure, dpi=30).startswith(b"\x89PNG")
    assert len(legend_of(found[1])) == 1


# The page.


def test_page_needs_nothing_else(three, tmp_path):
    path = report.write(three, tmp_path / "deep" / "report.html")
    assert path == tmp_path / "deep" / "report.html"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    text = path.read_text()
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        assert "href" not in attributes and "srcset" not in attributes
        assert attributes.get("src", "data:image/png;base64,").startswith(
            "data:image/png"
        )
        assert not any(key.startswith("on") for key in attributes)
    assert not re.search(r"https?://|@import|url\(", text)
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert "default-src 'none'" in policy


def test_page_shows_figures_with_captions_and_what_was_run(three, tmp_path):
    page = Page(report.write(three, tmp_path / "report.html").read_text())
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    # Certified, under attack, images of each run, trajectories, steps, training.
    assert len(pictures) == 2 + 3 + 1 + 1 + 1
    assert all(attributes["alt"] for attributes in pictures)
    assert sum(tag == "figcaption" for tag, _ in page.tags) == len(pictures)
    assert sum(tag == "details" for tag, _ in page.tags) == 3
    for words in (
        "1000 test images of mnist5k",
        "trained on 4000",
        "device: cpu",
        "jax 0.10.2",
        "proven lower bound",
        "empirical upper bound",
        "none: nothing bounds it",
        "raised no flag",
    ):
        assert words in page.text
    assert page.text.count("58.7") >= 2  # card and table
    bars = [a["style"] for tag, a in page.tags if tag == "td" and "style" in a]
    assert any("--v:58.7%" in bar for bar in bars)


def test_page_escapes_everything_a_run_says(tmp_path):
    run = example(HOSTILE)
    run.config["train"]["model"]["field"] = HOSTILE
    names = ("<b>0</b>",) * 9
    run = dataclasses.replace(run, pictures=pictures(attack=HOSTILE, class_names=names))
    run.evaluation.update(
        flags=[HOSTILE],
        certificate=HOSTILE,
        solver=HOSTILE,
        dataset=HOSTILE,
        device=HOSTILE,
        versions={HOSTILE: HOSTILE},
    )
    run.evaluation["attacks"][0]["name"] = HOSTILE
    text = report.write([run], tmp_path / "report.html").read_text()
    page = Page(text)
    assert "<script" not in text
    assert not {tag for tag, _ in page.tags} & {"script", "b0"}
    # All of it is still there to be read, and nothing was swallowed.
    assert page.text.count("<script>alert('x')</script>") >= 10


def test_checks_are_in_plain_words_and_flagged_ones_marked(three, tmp_path):
    fine = dict(summary="All is well.", flags=[])
    bad = dict(summary=HOSTILE, flags=["wrong gradient: it is"])
    work = {
        kind: dict(nfe=nfe, nfe_largest=60, steps=5.0, steps_largest=9)
        for kind, nfe in (("clean", 20.0), ("attacked", 23.5))
    }
    three[0].evaluation.update(
        protocol=HOSTILE,
        checks={"gradient": bad, "nfe": fine | work, HOSTILE: fine},
    )
    text = report.write(three, tmp_path / "report.html").read_text()
    page = Page(text)
    assert "<script" not in text
    assert page.text.count("in order") == 2 and page.text.count("flagged") >= 1
    assert page.text.index("Results") < page.text.index("What was checked")
    rows = [a for tag, a in page.tags if tag == "tr" and a.get("class") == "flagged"]
    assert len(rows) == 1
    table = grid(report.table(three))
    assert table["NFE, attacked"] == ["23.5 / 60", "–", "–"]


def test_successive_and_transferred_attacks_are_told_apart():
    run = example()
    run.evaluation["successive"] = True
    run.evaluation["attacks"][1]["via"] = "rk4x8"
    text = report.table([run, example("alone")])
    assert "one attack after another" in text and "accuracy under attack" in text
    assert grid(text)["pgd-40 Linf 0.1 via rk4x8"] == ["60.0", "–"]


def test_page_survives_half_a_surrogate_pair(tmp_path):
    run = dataclasses.replace(example("a\udc80b"), pictures=None)
    text = report.write([run], tmp_path / "report.html").read_text()
    assert "a?b" in text


def test_flags_stand_before_the_results(three, tmp_path):
    three[2].evaluation["flags"].append("masked gradients: fgsm beats pgd")
    text = report.write(three, tmp_path / "report.html").read_text()
    assert 0 < text.index("fgsm beats pgd") < text.index("<h2>Results")
    assert "raised no flag" not in text


def test_runs_on_different_images_are_not_comparable(three, tmp_path):
    three[1].evaluation["num_examples"] = 100
    text = Page(report.write(three, tmp_path / "report.html").read_text()).text
    assert "Not comparable" in text
    assert "contractive: 100 test images of mnist5k" in text


def test_a_run_with_little_to_show_still_has_a_page(tmp_path):
    bare = dataclasses.replace(example(proven=None), metrics=[], pictures=None)
    bare.evaluation.update(attacks=[], worst_case=[])
    page = Page(report.write([bare], tmp_path / "report.html").read_text())
    assert not any(tag == "img" for tag, _ in page.tags)
    assert "90.0" in page.text


def test_a_failed_page_leaves_the_old_one(three, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("jnode._files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write([dataclasses.replace(three[0], pictures=None)], path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("use", [report.table, lambda r: report.write(r, "x.html")])
def test_no_runs_is_an_error(use):
    with pytest.raises(ValueError, match="at least one"):
        use([])


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"jnode\[report\]"):
        figures.training([example()])


# Run folders.


def test_a_run_folder_comes_back_whole(folder, monkeypatch):
    run = report.read_run(folder)
    assert run.name == "ortho"
    assert run.evaluation == evaluation()
    assert run.metrics == example().metrics and run.seconds == 10
    for name, value in vars(pictures()).items():
        np.testing.assert_array_equal(getattr(run.pictures, name), value)
    monkeypatch.chdir(folder)
    assert report.read_run(".").name == "ortho"


def test_class_names_come_back(tmp_path):
    p = pictures(class_names=("cat", "dog"))
    p.save(tmp_path)
    found = Pictures.load(tmp_path)
    assert found.class_names == ("cat", "dog")
    assert (found.class_name(1), found.class_name(7)) == ("dog", "7")


def test_a_folder_without_pictures_or_metrics_is_still_a_run(folder):
    (folder / "pictures.npz").unlink()
    (folder / "metrics.jsonl").unlink()
    run = report.read_run(folder)
    assert run.pictures is None and run.metrics == [] and run.seconds is None


def test_folders_that_are_no_run_or_not_evaluated(folder, tmp_path):
    (folder / "evaluation.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"run scripts/evaluate\.py .*ortho first"
    ):
        report.read_run(folder)
    for nothing in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match="not a run folder"):
            report.read_run(nothing)


@pytest.mark.parametrize(
    "name, content",
    [
        ("evaluation.json", b"{"),
        ("evaluation.json", b"\xff\xfe"),
        ("metrics.jsonl", b'{"step": 1}\n{"st'),
        ("certificate-linf.json", b"{"),
        ("config.json", b"[]"),
        ("pictures.npz", b"PK\x03\x04 not a zip"),
        ("pictures.npz", b""),
        ("pictures.npz", b"\x80\x04N."),
    ],
)
def test_damaged_files_are_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as caught:
        report.read_run(folder)
    assert "damaged" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_truncated_pictures_are_named(folder):
    path = folder / "pictures.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"pictures\.npz is damaged"):
        report.read_run(folder)


@pytest.mark.parametrize("content", ["[]", '{"dataset": "mnist5k"}'])
def test_an_evaluation_that_lacks_something_says_what(folder, content):
    (folder / "evaluation.json").write_text(content)
    with pytest.raises(ValueError, match=r"lacks .*clean_accuracy.*anew"):
        report.read_run(folder)


def test_pictures_must_fit_together(tmp_path):
    p = pictures()
    p.save(tmp_path)
    with np.load(tmp_path / "pictures.npz") as file:
        arrays = dict(file)
    arrays["labels"] = arrays["labels"][:-1]
    np.savez(tmp_path / "pictures.npz", **arrays)
    with pytest.raises(ValueError, match=r"pictures\.npz is damaged"):
        Pictures.load(tmp_path)
