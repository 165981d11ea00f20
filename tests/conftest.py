"""Two CPU devices, strict dtypes and ranks, checked shapes, and a `getkey` fixture."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)
os.environ.setdefault("MPLBACKEND", "agg")
# Most of the time of the tests is compilation.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

from jaxtyping import install_import_hook

# Every annotated shape in the package is checked while the tests run.
_hook = install_import_hook("jnode", "tests.typechecker")

import itertools

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


_tests_done = itertools.count(1)


@pytest.fixture(autouse=True)
def few_mappings():
    """Drops compiled programs before they use up the process's memory mappings.

    Each takes some, of which Linux allows 65,530 by default; past that LLVM aborts.
    """
    yield
    maps = Path("/proc/self/maps")
    if next(_tests_done) % 20 == 0 and maps.exists():
        with maps.open() as lines:
            many = sum(1 for _ in lines) > 45_000
        if many:
            jax.clear_caches()


@pytest.fixture
def getkey():
    """A function that gives a new random key at each call, the same in every run."""
    counter = itertools.count()
    return lambda: jax.random.key(next(counter))


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
