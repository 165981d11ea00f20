"""What a result was computed with."""

import importlib.metadata

import jax


def own_version() -> str:
    """The installed version of jnode; "0+unknown" for a source tree on the path."""
    try:
        return importlib.metadata.version("jnode")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


def versions() -> dict[str, str]:
    """Versions of jax, jaxlib, diffrax, equinox and jnode, and the device."""
    names = ("jax", "jaxlib", "diffrax", "equinox")
    found = {name: importlib.metadata.version(name) for name in names}
    device = jax.devices()[0].device_kind
    return {**found, "jnode": own_version(), "device": device}
