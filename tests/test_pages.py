"""The README, the pages of docs/ and the notebooks: their Python runs, links lead
somewhere, names and commands exist, and no public name is without a page.
"""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jnode
from tests.helpers import slow_but

STUDIED = ("mnist", "mnist_narrow", "cifar10", "cifar10_narrow", "cifar100")
STUDIED = (*STUDIED, "lipschitz", "solvers")
ROOT = Path(__file__).parent.parent
TOP = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
# What is shown and not run: commands, output, equations set as text.
SHOWN = ("bash", "sh", "text", "json", "bibtex", "")

# The names that the blocks of some pages use; blocks of other pages need nothing.
MODEL = """
import jax
import jnode
side, patch = 8, 2
config = jnode.ModelConfig(features=patch**2, patch=patch)
key, size = jax.random.key(0), {"image_shape": (side, side, 1), "classes": 10}
solver = jnode.Solver("rk4", steps=2)
model = jnode.build(config, solver, **size, key=key)
images = jax.random.uniform(key, (2, side, side, 1))
labels = jax.vmap(model)(images).argmax(axis=1)
"""
TAKEN_FOR_GRANTED = {
    "adaptive": MODEL.replace("8, 2", "28, 4"),
    "linf": MODEL,
    "attacks": f"""{MODEL}
targets = (labels + 1) % 10
jnode.models.save("runs/mine", model, config, solver, **size)
""",
    "distributed": f"""{MODEL}
from jnode.train import DataConfig, TrainConfig
data = DataConfig(num_train=64)
config = jnode.ModelConfig(features=16, patch=4)
config = TrainConfig(data=data, model=config, solver=solver, epochs=1, batch_size=32)
attacks = [(jnode.attacks.PGD(steps=2), jnode.attacks.Budget("linf", 0.1))]
""",
    # Fewer images than the page's, and otherwise the same study.
    "study": """
import functools
import jnode.train
jnode.train.DataConfig = functools.partial(
    jnode.train.DataConfig, num_train=128, validation=3800
)
""",
}


def blocks(page):
    """The language and text of each block of code, and a name for it."""
    found = FENCE.findall(page.read_text())
    name = page.relative_to(ROOT).with_suffix("").as_posix()
    for number, (indent, language, code) in enumerate(found):
        text = re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
        yield language, text, f"{name}-{number}"


BLOCKS = [(page, *block) for page in PAGES for block in blocks(page)]
PYTHON = {name: (page, code) for page, x, code, name in BLOCKS if x == "python"}
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))


def run(code, folder):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=550,
    )
    assert done.returncode == 0, done.stderr
    for expected in re.findall(r"# prints (.*)", code):
        assert expected in done.stdout
    return done.stdout


def test_every_block_is_found():
    text = "".join(page.read_text() for page in PAGES)
    assert len(PYTHON) == text.count("```python") >= 25
    assert {language for _, language, *_ in BLOCKS} <= {"python", *SHOWN}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", slow_but(PYTHON, "README-1", "docs/index-2"))
def test_blocks_run(name, tmp_path):
    page, code = PYTHON[name]
    if "flax" in code:
        pytest.importorskip("flax")
    if "digit.png" in code:
        draw_digit(tmp_path / "digit.png")
    granted = TAKEN_FOR_GRANTED.get(page.stem, "") if page.parent.name == "docs" else ""
    run(f"{granted}\n{code}", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path):
    run(path.read_text(), tmp_path)


def draw_digit(path):
    """One of the embedded digits, larger, as a picture that somebody drew."""
    from PIL import Image

    from jnode.data import load

    picture = Image.fromarray(load("mnist5k", split="test").images[0, ..., 0])
    picture.resize((280, 280)).save(path)


def public_names():
    """Every name that a module offers: `X as X` of a package, all of a module."""
    for module in jnode._MODULES:
        folder = ROOT / "jnode" / module
        package = folder.is_dir()
        source = folder / "__init__.py" if package else folder.with_suffix(".py")
        for node in ast.parse(source.read_text()).body:
            if package and isinstance(node, ast.ImportFrom):
                for name in (x.asname for x in node.names if x.asname):
                    # A file of the same name would be shown in the place of it.
                    hidden = (folder / f"{name}.py").exists()
                    hidden = hidden and node.module != f"jnode.{module}"
                    yield f"{module}.{name}.{name}" if hidden else f"{module}.{name}"
            elif not package and (name := getattr(node, "name", "_"))[0] != "_":
                yield f"{module}.{name}"


def test_no_public_name_is_without_a_page():
    pages = (ROOT / "docs" / "api").glob("*.md")
    text = "\n".join(page.read_text() for page in pages)
    shown = set(re.findall(r"^::: jnode\.([\w.]+)$", text, re.MULTILINE))
    assert shown == {*public_names(), "models.batched.batched", "models.shipped.names"}
    overview = (ROOT / "docs" / "api" / "index.md").read_text()
    assert all(f"`jnode.{name}`" in overview for name in jnode.__all__)


def test_every_page_is_in_the_navigation():
    listed = re.findall(
        r"^ +- (?:[\w ]+: )?([\w/]+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.M
    )
    docs = {x.relative_to(ROOT / "docs").with_suffix("").as_posix() for x in PAGES[3:]}
    books = {f"notebooks/{path.stem}" for path in NOTEBOOKS}
    assert len(listed) == len(set(listed))
    assert set(listed) == docs | books | {"CHANGELOG", "CONTRIBUTING"}


def headings(page):
    """As GitHub and the site name them in links."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in found]


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https://)([^)]+)\)", page.read_text())
    for path, _, heading in (link.partition("#") for link in links):
        target = page.parent / path if path else page
        assert target.is_file(), path  # the site has a page for each, and no folders
        if heading.startswith("jnode."):  # of the API
            assert f"::: {heading}\n" in target.read_text(), heading
        else:
            assert not heading or heading in headings(target), f"{path}#{heading}"


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.stem)
def test_names_exist(page):
    # The names of the API's directives are compared with the public ones above.
    text = re.sub(r"(::: |#)jnode[\w.]+", "", page.read_text())
    for name in re.findall(r"\bjnode(?:\.\w+)+", text):
        found = jnode
        for part in name.split(".")[1:]:
            if not hasattr(found, part):  # a file of a module
                importlib.import_module(f"{found.__name__}.{part}")
            found = getattr(found, part)
    for path in re.findall(
        r"\b(?:benchmarks|docs|jnode|scripts|tests)/[\w/]+\.\w+", text
    ):
        assert (ROOT / path).exists(), path


def test_commands_name_scripts_and_presets_that_exist():
    from jnode.train import PRESETS

    shown = "\n".join(code for _, x, code, _ in BLOCKS if x in ("bash", "sh"))
    for script in re.findall(r"(?:scripts|benchmarks)/\w+\.(?:py|sh)", shown):
        assert (ROOT / script).is_file(), script
    for preset in re.findall(r"train\.py ([a-z]\w+)", shown):
        assert preset in PRESETS


def test_tables_are_those_that_the_benchmarks_wrote():
    results, readme = ROOT / "benchmarks" / "results", TOP[0].read_text()
    for name in ("demo", "cards"):
        assert (results / f"{name}.md").read_text().strip() in readme, name
    pages = {
        "fields": ("fields",),
        "training": (
            "kill",
            "faults",
            "checkpoints",
            "architectures",
            "card_attacks",
            "rho",
            "second_opinion",
        ),
        "evaluation": ("masking",),
        "attacks": ("attacks",),
        "speed": ("speed", "start", "work_precision", "adjoints", "precision"),
        "adaptive": ("adaptive_mnist", "adaptive_hunt"),
        "linf": ("linf", "linf_hunt"),
        "distributed": ("tpu", "scaling"),
        "contest": ("contest",),
        "study": tuple(f"study/{name}" for name in STUDIED),
    }
    for page, names in pages.items():
        text = (ROOT / "docs" / f"{page}.md").read_text()
        for name in names:
            assert (results / f"{name}.md").read_text().strip() in text, name
