"""What is shipped: the licence, the types, one version; and imports on any system."""

import ast
import importlib.metadata
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest

import jnode
from jnode import _process

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version(monkeypatch):
    assert jnode.__version__ == PROJECT["version"]
    assert f"\nversion: {jnode.__version__}\n" in (ROOT / "CITATION.cff").read_text()

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patched:
        patched.setattr(_process.importlib.metadata, "version", missing)
        assert _process.own_version() == "0+unknown"


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


def test_a_field_loads_no_training():
    heavy = ("matplotlib", "optax", "orbax", "tensorflow_datasets", "tqdm", "tyro")
    code = f"""
    import sys
    import jax, jnode
    assert not [m for m in sys.modules if m.startswith("jnode.") and "._" not in m]
    jnode.OrthoField((4,), key=jax.random.key(0))
    print([name for name in {heavy} if name in sys.modules])
    rooms = {{m.split(".")[1] for m in sys.modules if m.startswith("jnode.")}}
    print(sorted(room for room in rooms if not room.startswith("_")))
    """
    loaded, rooms = _output(code).splitlines()
    assert loaded == "[]"
    assert rooms == "['activations', 'bounds', 'constraints', 'fields', 'linear']"


def test_every_public_name_resolves():
    # The function and not the module of the same name, whatever was imported before.
    code = """
    import inspect, pkgutil, importlib
    import jnode
    for module in pkgutil.walk_packages(jnode.__path__, "jnode."):
        importlib.import_module(module.name)
    named = [n for n in jnode.__all__ if n not in jnode._MODULES]
    assert not [n for n in named if inspect.ismodule(getattr(jnode, n))]
    assert all(inspect.ismodule(getattr(jnode, n)) for n in jnode._MODULES)
    assert set(jnode.__all__) <= set(dir(jnode))
    assert jnode.resolve is importlib.import_module("jnode.constraints").resolve
    """
    assert _output(code) == ""
    with pytest.raises(AttributeError, match="'jnode' has no attribute 'nothing'"):
        jnode.nothing  # noqa: B018


def test_type_checkers_see_the_names_that_there_are():
    tree = ast.parse((ROOT / "jnode" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    homes = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names:
            assert alias.asname == alias.name
            homes[alias.name] = node.module
    rooms = {name for name, home in homes.items() if home == "jnode"}
    assert rooms == set(jnode._MODULES)
    names = {k: v.removeprefix("jnode.") for k, v in homes.items() if k not in rooms}
    assert names == jnode._HOMES


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
    from jnode._process import peak_memory
    print(peak_memory())
    """
    assert _output(code) == "{}\n"


def _output(code):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
