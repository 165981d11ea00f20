"""What a result was computed with: versions, device, command and commit."""

import importlib.metadata
import shlex
import subprocess
import sys
from typing import Any

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


def provenance() -> dict[str, Any]:
    """What `config.json` keeps beside the configuration.

    `command` as it was given; `git`, the commit of the working directory and whether
    files differ from it, or `None` outside a repository; `versions` with the device;
    `num_devices`.
    """
    return {
        "command": shlex.join(sys.argv),
        "git": _commit(),
        "versions": versions(),
        "num_devices": jax.device_count(),
    }


def _commit() -> dict[str, Any] | None:
    try:
        commit = _git_says("rev-parse", "HEAD")
        return {"commit": commit, "dirty": _git_says("status", "--porcelain") != ""}
    except (OSError, subprocess.SubprocessError):
        return None


def _git_says(*args: str) -> str:
    # A repository's own configuration may name a program to watch files; none is run.
    command = ["git", "-c", "core.fsmonitor=false", *args]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
