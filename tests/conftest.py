"""Two CPU devices, strict dtypes and ranks, checked shapes, and a `getkey` fixture."""

import os
import tempfile
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time of the tests is compilation: little is optimised, and the older
# emitters and one module for LLVM take a third of the time of XLA's default. With
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 all is compiled as it is for users.
_flags = ["--xla_force_host_platform_device_count=2"]
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1":
    _flags += ["--xla_cpu_parallel_codegen_split_count=1"]
    if version("jaxlib").startswith("0.10."):  # later ones die of this flag
        _flags += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_flags])
os.environ.setdefault("MPLBACKEND", "agg")

# Programs that several tests or the scripts they start have in common: compiled once.
# A folder to each worker, since JAX does not lock it.
_cache = tempfile.TemporaryDirectory(prefix="jnode-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# A core to each of several workers: with threads on all of them they would wait for
# each other.
_worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if _worker and hasattr(os, "sched_setaffinity"):
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(_worker.removeprefix("gw")) % len(_cores)]})

from jaxtyping import install_import_hook

# Every annotated shape in the package is checked while the tests run.
_hook = install_import_hook("jnode", "tests.typechecker")

import itertools

import jax
import jaxtyping
import pytest

from jnode._process import drop_programs_if_many, hush_orbax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config, items):
    """Leaves the slow tests out, unless --all or a selection with -m is given."""
    if config.option.all or config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture(scope="session", autouse=True)
def hushed():
    """As in the scripts; after pytest has put its own hooks there."""
    hush_orbax()


_tests_done = itertools.count(1)


@pytest.fixture(autouse=True)
def few_mappings():
    """Of compiled programs, which so many tests would use up."""
    yield
    if next(_tests_done) % 20 == 0:
        drop_programs_if_many()


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Those of a file are dropped after it: all of them would take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def getkey():
    """A function that gives a new random key at each call, the same in every run."""
    counter = itertools.count()
    return lambda: jax.random.key(next(counter))


@pytest.fixture
def unchecked():
    """The package as users meet it, who do not check its annotations."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def x64():
    """Double precision for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def standard_promotion():
    """For Optax, whose step counter does not know of strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield
