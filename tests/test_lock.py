"""Locks: one at a time, over processes and threads, and gone with their process."""

import errno
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jnode._files import claimed, locked

ROOT = Path(__file__).parent.parent


def test_the_second_is_refused_in_one_sentence(tmp_path):
    folder = tmp_path / "run"
    with locked(folder, "training"):
        words = f"^{folder} is in use: another training writes into it"
        with pytest.raises(RuntimeError, match=words), locked(folder, "training"):
            pass
        with locked(folder, "evaluation"):  # has a lock of its own
            pass
    with locked(folder, "training"):
        pass
    assert {p.name for p in folder.iterdir()} == {".training.lock", ".evaluation.lock"}


def test_an_error_ends_the_lock(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path, "training"):
        raise KeyError
    with locked(tmp_path, "training"):
        pass


def test_a_killed_process_holds_nothing(tmp_path):
    code = f"""
    import pathlib, time
    from jnode._files import locked
    with locked(pathlib.Path({str(tmp_path)!r}), "training"):
        print("mine", flush=True)
        time.sleep(100)
    """
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with other:
        assert other.stdout is not None and other.stdout.readline() == "mine\n"
        refused = pytest.raises(RuntimeError, match="is in use")
        with refused, locked(tmp_path, "training"):
            pass
        with claimed(tmp_path / ".training.lock", wait=False) as mine:
            assert not mine
        other.send_signal(signal.SIGKILL)
        with claimed(tmp_path / ".training.lock", wait=True) as mine:
            assert mine


def test_no_link_is_followed(tmp_path):
    victim = tmp_path / "victim"
    (tmp_path / ".training.lock").symlink_to(victim)
    with pytest.raises(OSError), locked(tmp_path, "training"):
        pass
    assert not victim.exists()


def test_file_systems_without_locks(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="not on Unix")

    def refuse(error):
        def flock(*args):
            raise OSError(error, "refused")

        monkeypatch.setattr(fcntl, "flock", flock)

    refuse(errno.ENOLCK)
    with claimed(tmp_path / "lock", wait=True) as mine:
        assert mine
    refuse(errno.EIO)
    with pytest.raises(OSError), locked(tmp_path, "training"):
        pass
