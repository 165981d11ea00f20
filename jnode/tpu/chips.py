"""Kinds of TPU, and descriptions of some that need not be there."""

import dataclasses
import importlib.util
import os

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip, from public specifications (cloud.google.com/tpu/docs).

    - `topologies`: by the number of chips, the compiler's name for so many.
    - `peak`: FLOP/s of its matrix units in bfloat16.
    - `clock`: cycles a second; `peak` over the products that its units do in a cycle.
    - `memory`: bytes; `bandwidth`: bytes a second from it.
    - `ici`: bytes a second that a chip sends to its neighbours, all links together.
    - `options`: of the compiler's description; both cores of a v4 chip are one device
        ("megacore"), as JAX runs it.
    """

    topologies: dict[int, str]
    peak: float
    clock: float
    memory: float
    bandwidth: float
    ici: float
    options: dict[str, str] = dataclasses.field(default_factory=dict)


CHIPS = {
    "v4": Chip(
        {1: "v4:1x1x1", 4: "v4:2x2x1", 16: "v4:2x2x4"},
        peak=275e12,
        clock=1.05e9,
        memory=32e9,
        bandwidth=1228e9,
        ici=300e9,
        options={"chip_config_name": "megacore"},
    ),
    "v5e": Chip(
        {1: "v5e:1x1", 4: "v5e:2x2", 16: "v5e:4x4"},
        peak=197e12,
        clock=1.5e9,
        memory=16e9,
        bandwidth=819e9,
        ici=200e9,
    ),
    "v6e": Chip(
        {1: "v6e:1x1", 4: "v6e:2x2", 16: "v6e:4x4"},
        peak=918e12,
        clock=1.75e9,
        memory=32e9,
        bandwidth=1640e9,
        ici=448e9,
    ),
}


def devices(kind: str, chips: int) -> list[jax.Device]:
    """The devices of a TPU that is described to the compiler, and need not exist.

    Loads libtpu into this process: call it only where nothing else is to be computed.

    **Raises:** `ImportError` without libtpu; `ValueError` for a kind or number of chips
    that is not in `CHIPS`.
    """
    if kind not in CHIPS:
        raise ValueError(f"chip must be one of {', '.join(CHIPS)}, not {kind!r}.")
    known = CHIPS[kind].topologies
    if chips not in known:
        numbers = ", ".join(map(str, known))
        raise ValueError(f"chips must be one of {numbers}, not {chips}.")
    named = os.environ.get("TPU_LIBRARY_PATH")
    if not named and importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            'the TPU compiler is not installed: pip install "jnode[tpu]", best into an '
            "environment of its own, or name its libtpu.so by TPU_LIBRARY_PATH."
        )
    # Otherwise it asks the network what machine this is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    from jax.experimental import topologies

    return topologies.get_topology_desc(
        platform="tpu", topology_name=known[chips], **CHIPS[kind].options
    ).devices
