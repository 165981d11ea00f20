"""The page on other libraries: each of its examples runs, and prints what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import slow_but

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "interop.md").read_text()
BLOCK = re.compile(r"## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", re.DOTALL)
BLOCKS = dict(BLOCK.findall(TEXT))


def test_every_block_is_found():
    assert len(BLOCKS) == TEXT.count("```python") >= 10


@pytest.mark.parametrize("title", slow_but(BLOCKS, *list(BLOCKS)[:2]))
def test_examples_run(title, tmp_path):
    code = BLOCKS[title]
    if "flax" in code:
        pytest.importorskip("flax")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    for expected in re.findall(r"# prints (.*)", code):
        assert expected in done.stdout
