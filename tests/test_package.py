"""What is shipped: the licence, the types, one version; and imports on any system."""

import importlib.metadata
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest

import jnode
from jnode import _versions

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version(monkeypatch):
    assert jnode.__version__ == PROJECT["version"]
    assert f"\nversion: {jnode.__version__}\n" in (ROOT / "CITATION.cff").read_text()

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patched:
        patched.setattr(_versions.importlib.metadata, "version", missing)
        assert _versions.own_version() == "0+unknown"


def test_the_wheel_holds_licence_and_types(tmp_path):
    wheel = pytest.importorskip("hatchling.builders.wheel")
    (path,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    with zipfile.ZipFile(path) as built:
        info = f"jnode-{PROJECT['version']}.dist-info"
        licence = built.read(f"{info}/licenses/LICENSE").decode()
        metadata = built.read(f"{info}/METADATA").decode()
        names = built.namelist()
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence
    assert "License-Expression: Apache-2.0" in metadata
    assert "License-File: LICENSE" in metadata
    assert "jnode/py.typed" in names
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "jnode").rglob("*.py")}
    assert sources <= set(names)


def test_imports_without_unix_modules():
    """As on Windows: no module of the package needs them while it is imported."""
    code = """
    import importlib, pkgutil, signal, sys
    for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "syslog"):
        sys.modules[name] = None
    for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "SIGQUIT"):
        delattr(signal, name)
    import jnode
    for module in pkgutil.walk_packages(jnode.__path__, "jnode."):
        importlib.import_module(module.name)
    from jnode.train.log import peak_memory
    print(peak_memory())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{}\n"
