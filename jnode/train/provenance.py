"""Where a run's numbers come from: command, commit, versions, device."""

import shlex
import subprocess
import sys
from typing import Any

import jax

from jnode._versions import versions


def provenance() -> dict[str, Any]:
    """What `config.json` keeps beside the configuration.

    `command` as it was given; `git`, the commit of the working directory and whether
    files differ from it, or `None` outside a repository; `versions` with the device;
    `num_devices`.
    """
    return {
        "command": shlex.join(sys.argv),
        "git": _git(),
        "versions": versions(),
        "num_devices": jax.device_count(),
    }


def _git() -> dict[str, Any] | None:
    try:
        commit = _run("rev-parse", "HEAD")
        return {"commit": commit, "dirty": _run("status", "--porcelain") != ""}
    except (OSError, subprocess.SubprocessError):
        return None


def _run(*args: str) -> str:
    # A repository's own configuration may name a program to watch files; none is run.
    command = ["git", "-c", "core.fsmonitor=false", *args]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
