"""What a result was computed with."""

import importlib.metadata

import jax


def versions() -> dict[str, str]:
    """Versions of jax, jaxlib, diffrax, equinox and jnode, and the device."""
    names = ("jax", "jaxlib", "diffrax", "equinox", "jnode")
    found = {name: importlib.metadata.version(name) for name in names}
    return {**found, "device": jax.devices()[0].device_kind}
