"""The README: its examples run, its files are there, its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

STUDIED = ("mnist", "cifar10", "cifar100", "lipschitz", "solvers")
ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


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


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_commands_name_scripts_and_presets_that_exist():
    from jnode.train import PRESETS

    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", TEXT, re.DOTALL)
    for script in re.findall(r"scripts/\w+\.(?:py|sh)", "\n".join(blocks)):
        assert (ROOT / script).is_file(), script
    for preset in re.findall(r"train\.py (\w+)", "\n".join(blocks)):
        assert preset in PRESETS


def test_tables_are_those_that_the_benchmarks_wrote():
    results = ROOT / "benchmarks" / "results"
    assert (results / "demo.md").read_text().strip() in TEXT
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
