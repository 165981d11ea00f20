"""Progress: a bar that moves on a terminal, and in a file a line once in a while."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jnode import _progress
from jnode._progress import progress_bar

ROOT = Path(__file__).parent.parent
LOOP = """
import time
from jnode._progress import progress_bar
with progress_bar(8, show=True, unit="step", mininterval=0) as bar:
    for i in range(8):
        time.sleep(0.02)
        bar.set_postfix_str(f"loss {i}")
        bar.update()
"""

HELP = """
import sys
import tyro
from jnode._process import run

def main(number: int = 1): ...

sys.stdout.isatty = lambda: True
run(lambda: tyro.cli(main, args=["--help"]))
"""


def test_one_line_where_stderr_is_no_terminal(capfd):
    with progress_bar(3, show=True, unit="image") as bar:
        for i in range(3):
            bar.set_description(f"part {i}")
            bar.update()
    told = capfd.readouterr()
    assert told.out == "" and "\r" not in told.err
    assert told.err.count("\n") == 1
    assert "part 2" in told.err and "3/3" in told.err


def test_a_long_loop_writes_lines_on_its_way(capfd, monkeypatch):
    clock = iter(range(0, 100_000, 25))  # each look at the clock takes 25 seconds
    monkeypatch.setattr(_progress.time, "monotonic", lambda: next(clock))
    with progress_bar(40, show=True, unit="step", mininterval=0) as bar:
        for i in range(40):
            bar.update()
            bar.set_postfix_str(f"loss {i}")
    told = capfd.readouterr().err
    assert "\r" not in told
    lines = told.splitlines()
    assert 5 < len(lines) < 40 and all("/40" in line for line in lines)
    assert "40/40" in lines[-1] and "loss 39" in lines[-1]


def test_the_line_is_written_where_the_loop_fails(capfd):
    with pytest.raises(KeyError), progress_bar(3, show=True) as bar:
        bar.update()
        raise KeyError
    assert "1/3" in capfd.readouterr().err


def test_nothing_is_shown_unless_asked(capfd):
    with progress_bar(3, show=False) as bar:
        bar.update()
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of Unix")
def test_it_moves_on_a_terminal():
    import pty
    import termios

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LOOP]
    subprocess.run(command, stderr=theirs, env=env, check=True, timeout=250)
    os.close(theirs)
    told = os.read(ours, 100_000).decode(errors="replace")
    os.close(ours)
    assert told.count("\r") > 5 and "8/8" in told and "loss 7" in told


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of Unix")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_help_obeys_no_color(no_color):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "NO_COLOR": no_color}
    command = [sys.executable, "-c", HELP]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=250)
    assert "--number" in done.stdout
    assert ("\x1b[" in done.stdout) is (no_color == "")
