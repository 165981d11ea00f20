"""NVIDIA cards that are not there, as XLA's compiler needs them described."""

import dataclasses
import importlib.util

import jax


@dataclasses.dataclass(frozen=True)
class Card:
    """One kind of card, from public specifications (docs.nvidia.com/cuda).

    - `name`: as the driver calls it.
    - `capability`: its CUDA compute capability, major and minor.
    - `cores`: streaming multiprocessors; `units`: float32 units in each.
    - `clock`: GHz, at its highest.
    - `shared`, `block`: bytes of shared memory in a multiprocessor, and the most that
        one block of threads may have.
    - `cache`: bytes of the second-level cache.
    - `memory`: bytes; `bandwidth`: bytes a second from it.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    units: int
    clock: float
    shared: int
    block: int
    cache: int
    memory: int
    bandwidth: int

    def description(self) -> str:
        """The card in the compiler's own format."""
        major, minor = self.capability
        return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {self.cores}
  fpus_per_core: {self.units}
  clock_rate_ghz: {self.clock}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_core: {self.shared}
  shared_memory_per_block_optin: {self.block}
  l2_cache_size: {self.cache}
  device_memory_size: {self.memory}
  memory_bandwidth: {self.bandwidth}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{self.name}"
"""


CARDS = {
    "a100": Card(
        "NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        cores=108,
        units=64,
        clock=1.41,
        shared=164 * 1024,
        block=163 * 1024,
        cache=40 * 1024**2,
        memory=80 * 1024**3,
        bandwidth=2039 * 10**9,
    ),
    "h100": Card(
        "NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        cores=132,
        units=128,
        clock=1.98,
        shared=228 * 1024,
        block=227 * 1024,
        cache=50 * 1024**2,
        memory=80 * 1024**3,
        bandwidth=3352 * 10**9,
    ),
}


def devices(kind: str) -> list[jax.Device]:
    """One card that is described to the compiler, and need not exist.

    **Raises:** `ImportError` without JAX's plugin for CUDA.
    """
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise ImportError(
            "JAX's compiler for CUDA is not installed: pip install --no-deps "
            "jax-cuda12-plugin jax-cuda12-pjrt, of the version of jax."
        )
    from jax.experimental import topologies

    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=kind,
        topology="1x1x1",
        target_config=CARDS[kind].description(),
    ).devices


def cost(compiled: jax.stages.Compiled) -> dict[str, float]:
    """XLA's count of a compiled program's bytes and FLOPs.

    Without a card the compiled program does not tell them itself, so the compiled text
    is counted as JAX counts a program before it is compiled.
    """
    from jax._src.lib import _jax

    (module,) = compiled.runtime_executable().hlo_modules()
    client = jax.devices("cpu")[0].client
    return dict(_jax.hlo_module_cost_analysis(client, module))
