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

ROOT = Path(__file__).parent.parent


def test_work_counts_loops_and_passes():
    x = jnp.ones((8, 8))
    product = 2 * 8**3

    def loops(x):
        body = lambda x, _: (jnp.matmul(x, x, precision="highest"), None)
        x, _ = jax.lax.scan(body, x, length=5)
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x)

    found = work(loops, x, turns=3)
    assert found.flops == (5 + 3) * product
    assert found.mxu_flops == (5 * 6 + 3) * product


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


@pytest.mark.slow
@pytest.mark.tpu
@pytest.mark.skipif(
    not os.environ.get("TPU_LIBRARY_PATH") and not importlib.util.find_spec("libtpu"),
    reason="the TPU compiler is not installed: pip install libtpu",
)
def test_evaluation_compiles_for_four_chips(tmp_path):
    """In a process of its own, since the TPU's library changes the one it is in."""
    command = [sys.executable, str(ROOT / "benchmarks/compile_tpu.py"), "--program"]
    command += ["evaluate", "--chip", "v5e", "--chips", "4", "--out"]
    # Compiled as users do; the TPU's library knows no flags of the CPU's compiler.
    ours = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    env = {k: v for k, v in os.environ.items() if k not in ours}
    env["JAX_PLATFORMS"] = "cpu"
    subprocess.run([*command, str(tmp_path / "tpu")], env=env, check=True, timeout=250)
    (row,) = json.loads((tmp_path / "tpu.json").read_text())["rows"]
    assert row["devices"] == 4 and row["collectives"] == {}
    assert 1e-6 < row["estimated_seconds"] < 1e-2
    assert 0 < row["share_of_peak"] < row["mxu_share"] < 1
    assert "| evaluate | contractive | v5e x 4 |" in (tmp_path / "tpu.md").read_text()
