"""How scripts start, stop and report errors, and the machine they run on."""

import ctypes
import importlib.metadata
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from jnode._files import FolderInUse

# Errors that users can mend: reported in one sentence.
EXPECTED = (
    ValueError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    ImportError,
    FolderInUse,
)


class Interrupted(KeyboardInterrupt):
    """Stopped by SIGINT or SIGTERM at a point from which it can resume.

    `signal` is the number of the signal. Several processes all stop at the same step.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = number


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that a step is never cut in two."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may set handlers
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    old = {s: signal.signal(s, lambda n, _: caught.append(n)) for s in kinds}
    try:
        yield caught
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


def run(
    main: Callable[[], None], exit_codes: Mapping[type[Exception], int] | None = None
) -> None:
    """Runs a script with a persistent compilation cache and one-sentence errors.

    The exit code is 128 + the signal's number after a signal, the error's code in
    `exit_codes`, or 2 for bad input.

    The cache lies in `JAX_COMPILATION_CACHE_DIR`, else ~/.cache/jnode. With
    `JNODE_TRACEBACK=1` errors come with their traceback; with `NO_COLOR` nothing is
    coloured.
    """
    keep_freed_memory()
    hush_orbax()
    _obey_no_color()
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = Path(cache) if cache else Path.home() / ".cache" / "jnode"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        main()
    except KeyboardInterrupt as stop:
        code = 128 + getattr(stop, "signal", signal.SIGINT)
        if jax.distributed.is_initialized():  # stopped alone
            _leave(code)
        raise SystemExit(code) from None
    except Exception as error:
        codes = {**dict.fromkeys(EXPECTED, 2), **(exit_codes or {})}
        known = [code for kind, code in codes.items() if isinstance(error, kind)]
        brief = bool(known) and os.environ.get("JNODE_TRACEBACK") != "1"
        several = jax.distributed.is_initialized()
        if not brief and not several:
            raise
        where = f" in process {jax.process_index()}" if several else ""
        name = f"{type(error).__name__}: " if several else ""
        print(f"error{where}: {name}{error}", file=sys.stderr)
        if not brief:
            traceback.print_exception(error)
        if several:
            _leave(known[-1] if known else 1)
        raise SystemExit(known[-1]) from None


def _obey_no_color() -> None:
    """As https://no-color.org asks: tyro, which writes the help, ignores it."""
    if os.environ.get("NO_COLOR"):
        options = getattr(sys.modules.get("tyro"), "_experimental_options", {})
        options["ansi_codes"] = False


def _leave(code: int) -> None:
    """Ends the process at once, so that the other processes see a closed connection.

    If it ended by an exception, JAX would first wait for the other processes, which
    wait for this one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def hush_orbax() -> None:
    """Silences Orbax's own reports of errors that are raised here anyway.

    When a write fails, each of its threads prints a page about it. When a read fails,
    the other reads that are still running complain for some time afterwards that the
    event loop is gone, since Orbax closed it at the first failure.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    thread_hook, unraisable_hook = threading.excepthook, sys.unraisablehook

    def of_threads(args):
        if not type(args.thread).__module__.startswith("orbax"):
            thread_hook(args)

    def of_readers(unraisable):
        error, text = unraisable.exc_value, str(unraisable.exc_value)
        closed = isinstance(error, RuntimeError) and text == "Event loop is closed"
        # A reader that had not started yet, if warnings are errors.
        unbegun = isinstance(error, RuntimeWarning) and "never awaited" in text
        if not closed and not unbegun:
            unraisable_hook(unraisable)

    threading.excepthook, sys.unraisablehook = of_threads, of_readers


# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory, up to 2 GB, for the next allocations.

    XLA's CPU backend frees its buffers after each run of a program. By default glibc
    returns large buffers to Linux, and every page of the next allocation costs a page
    fault: 26,000 of them in a training step of `certified_cifar10`, a quarter of its
    CPU time. All threads share one arena, since the arenas of threads other than the
    main one return memory whatever the settings are. Only Linux is affected.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def drop_programs_if_many(limit: int = 45_000) -> None:
    """Drops compiled programs before they use up the process's memory mappings.

    Building and solving a small model takes about 90 mappings. Linux allows 65,530 by
    default, and LLVM aborts beyond that, which a study of many models would reach.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    with maps.open() as lines:
        many = sum(1 for _ in lines) > limit
    if many:
        jax.clear_caches()


def peak_memory() -> dict[str, int]:
    """The most bytes in use so far: of the first device where it counts them
    (`peak_device_bytes`), else of this process (`peak_process_bytes`); empty where
    the operating system does not count them either (Windows)."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return {"peak_device_bytes": int(stats["peak_bytes_in_use"])}
    try:
        import resource
    except ImportError:  # not on Unix
        return {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In bytes on macOS, in KiB elsewhere.
    return {"peak_process_bytes": peak if sys.platform == "darwin" else 1024 * peak}


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
    """What `config.json` records beside the configuration.

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
