"""What TPU programs cost: counted, and by the real compiler where it is installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks.hlo_cost import cycles, work
from jnode._process import versions

ROOT = Path(__file__).parent.parent


def test_work_counts_loops_and_passes():
    x = jnp.ones((8, 8))
    product = 2 * 8**3

    def loops(x):
        body = lambda x, _: (jnp.matmul(x, x, precision="highest"), None)
        x, _ = jax.lax.scan(body, x, length=5)
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x)

    found = work(loops, x, turns=3, platform="tpu")
    assert found.flops == (5 + 3) * product
    assert found.mxu_flops == (5 * 6 + 3) * product


def test_work_counts_the_branch_of_the_platform():
    x = jnp.ones((8, 8))

    def f(x):
        return jax.lax.platform_dependent(
            x, cpu=lambda x: x @ x @ x, default=lambda x: x @ x
        )

    flops = [work(f, x, turns=1, platform=p).flops for p in ("cpu", "tpu", "cuda")]
    assert flops == [4 * 8**3, 2 * 8**3, 2 * 8**3]


HLO = """HloModule m

%body (p: (s32[])) -> (s32[]) {
  %a = f32[8]{0} fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"100"}
}

%cond (p: (s32[])) -> pred[] {
  %n = s32[]{:T(128)} constant(7)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w = (s32[]) while(%t), condition=%cond, body=%body
  %c = f32[8]{0} copy(%x), backend_config={"estimated_cycles":"5"}
}
"""


def test_cycles_multiply_loops_out():
    assert cycles(HLO, turns=1) == 7 * 100 + 5
    unknown = HLO.replace("constant(7)", "parameter(0)")
    assert cycles(unknown, turns=3) == 3 * 100 + 5
    with pytest.raises(ValueError, match="ENTRY"):
        cycles("", turns=1)


def missing() -> str:
    """Why the TPU compiler cannot be asked, or nothing."""
    named = os.environ.get("TPU_LIBRARY_PATH")
    if named or importlib.util.find_spec("libtpu"):
        return ""
    return "the TPU compiler is not installed: pip install libtpu"


COMMITTED = json.loads((ROOT / "benchmarks/results/tpu.json").read_text())
KEY = ("program", "preset", "chip", "chips", "images_per_device")
QUICK = {
    ("evaluate", "certified_mnist", "v5e", 1, 256),
    ("evaluate", "contractive", "v6e", 4, 256),
}


def rows():
    """One committed row for each program and preset, on v5e, and the quick ones."""
    for row in COMMITTED["rows"]:
        name = tuple(row[k] for k in KEY)
        if name in QUICK:
            yield pytest.param(row, id="-".join(map(str, name)))
        elif name[2:] == ("v5e", 1, 256):
            slow = pytest.mark.slow
            yield pytest.param(row, id="-".join(map(str, name)), marks=slow)


@pytest.mark.tpu
@pytest.mark.timeout(900)  # its compiler takes minutes for a training step
@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("row", rows())
def test_estimates_are_those_that_are_committed(row, tmp_path):
    """In a process of its own, since the TPU's library changes the one it is in."""
    if versions()["jaxlib"] != COMMITTED["versions"]["jaxlib"]:
        pytest.skip("estimates of another compiler were committed")
    command = [sys.executable, str(ROOT / "benchmarks/compile_tpu.py")]
    flags = ("--program", "--preset", "--chip", "--chips", "--images")
    for flag, name in zip(flags, KEY, strict=True):
        command += [flag, str(row[name])]
    # Compiled as users do; the TPU's library knows no flags of the CPU's compiler.
    ours = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    env = {k: v for k, v in os.environ.items() if k not in ours}
    env["JAX_PLATFORMS"] = "cpu"
    command += ["--out", str(tmp_path / "tpu")]
    subprocess.run(command, env=env, check=True, timeout=800)
    (found,) = json.loads((tmp_path / "tpu.json").read_text())["rows"]
    assert found["collectives"] == row["collectives"]
    for name in ("flops", "bytes", "memory_bytes", "estimated_seconds", "mxu_share"):
        assert found[name] == pytest.approx(row[name], rel=0.1), name


def test_committed_estimates_are_possible():
    for row in COMMITTED["rows"]:
        assert row["flops"] > 0 and row["bytes"] > 0
        assert row["memory_bytes"] < 16e9  # of the smallest chip
        if row["chip"].startswith("v"):
            assert 0 < row["share_of_peak"] < row["mxu_share"] < 1
        training = row["program"] == "train" and row["chips"] > 1
        if row["program"] != "attack":
            assert row["collectives"] == ({"all-reduce": 1} if training else {})
            assert row["collectives_in_loops"] == 0
