"""The site is built again unless it cannot have changed (.ci/site_unchanged.py)."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "site_unchanged.py"
MODULE = 'def f(x):\n    """Twice x."""\n    return {body}\n'


def git(folder, *words):
    named = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *named, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def branch(tmp_path):
    """A repository on a branch of its main."""
    for path in ("jnode/a.py", "tests/test_a.py", "docs/index.md", ".ci/x"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(MODULE.format(body="2 * x"))
    shutil.copy(SCRIPT, tmp_path / ".ci")
    git(tmp_path, "init", "-b", "main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    git(tmp_path, "switch", "-c", "branch")
    git(tmp_path, "commit", "--allow-empty", "-m", "two")
    return tmp_path


def is_unchanged(folder):
    script = str(folder / ".ci" / SCRIPT.name)
    return subprocess.run([sys.executable, script], capture_output=True).returncode == 0


@pytest.mark.parametrize("path", ["jnode/a.py", "tests/test_a.py"])
@pytest.mark.parametrize("commit", [False, True])
def test_no_site_for_another_body(branch, path, commit):
    (branch / path).write_text(MODULE.format(body="x + x"))
    if commit:
        git(branch, "commit", "-am", "three")
    assert is_unchanged(branch)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("jnode/a.py", MODULE.replace("Twice", "Two times").format(body="2 * x")),
        ("jnode/a.py", MODULE.replace("f(x)", "f(x=1)").format(body="2 * x")),
        ("jnode/a.py", "not Python"),
        ("jnode/b.py", ""),
        ("tests/test_b.py", ""),
        ("docs/index.md", "# Home"),
        (".ci/x", ""),
    ],
)
def test_a_site_for_what_it_shows(branch, path, text):
    (branch / path).write_text(text)
    assert not is_unchanged(branch)


def test_a_site_where_nothing_is_known(branch):
    git(branch, "switch", "main")
    assert not is_unchanged(branch)
    git(branch, "branch", "-m", "trunk")
    assert not is_unchanged(branch)
