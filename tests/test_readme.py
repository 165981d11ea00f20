"""The README and the pages: examples run, links lead somewhere, names exist."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jnode

STUDIED = ("mnist", "cifar10", "cifar100", "lipschitz", "solvers")
ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_python_examples_run(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=250,
        )
        assert done.returncode == 0, done.stderr
        for expected in re.findall(r"# prints (.*)", block):
            assert expected in done.stdout


def headings(page):
    """As GitHub names them in links."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https://)([^)]+)\)", page.read_text())
    for path, _, heading in (link.partition("#") for link in links):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not heading or heading in headings(target), f"{path}#{heading}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_exist(page):
    text = page.read_text()
    for name in re.findall(r"\bjnode(?:\.\w+)+", text):
        found = jnode
        for part in name.split(".")[1:]:
            if not hasattr(found, part):  # a file of a room
                importlib.import_module(f"{found.__name__}.{part}")
            found = getattr(found, part)
    for path in re.findall(
        r"\b(?:benchmarks|docs|jnode|scripts|tests)/[\w/]+\.\w+", text
    ):
        assert (ROOT / path).exists(), path


def test_commands_name_scripts_and_presets_that_exist():
    from jnode.train import PRESETS

    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", TEXT, re.DOTALL)
    for script in re.findall(r"scripts/\w+\.(?:py|sh)", "\n".join(blocks)):
        assert (ROOT / script).is_file(), script
    for preset in re.findall(r"train\.py (\w+)", "\n".join(blocks)):
        assert preset in PRESETS


def test_tables_are_those_that_the_benchmarks_wrote():
    results = ROOT / "benchmarks" / "results"
    for name in ("demo", "cards"):
        assert (results / f"{name}.md").read_text().strip() in TEXT, name
    overview, _ = (results / "certified.md").read_text().split("\n\n", 1)
    assert overview in TEXT
    pages = {
        "fields": ("fields",),
        "training": ("kill", "faults", "checkpoints"),
        "evaluation": ("masking",),
        "attacks": ("attacks",),
        "speed": ("speed", "adjoints", "precision"),
        "distributed": ("tpu",),
        "study": tuple(f"study/{name}" for name in STUDIED),
    }
    for page, names in pages.items():
        text = (ROOT / "docs" / f"{page}.md").read_text()
        for name in names:
            assert (results / f"{name}.md").read_text().strip() in text, name
