"""How the scripts start and how they fail."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from jnode._memory import keep_freed_memory

EXPECTED = (ValueError, TypeError, FileNotFoundError, FileExistsError, ImportError)


def run(main: Callable[[], None]) -> None:
    """Runs a script with a persistent compilation cache and one-sentence errors.

    It exits with the error's own `exit_code`, or with 2 for bad input.

    The cache lies in `JAX_COMPILATION_CACHE_DIR`, else ~/.cache/jnode. With
    `JNODE_TRACEBACK=1` errors come with their traceback.
    """
    keep_freed_memory()
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = Path(cache) if cache else Path.home() / ".cache" / "jnode"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if os.environ.get("JNODE_TRACEBACK") == "1":
        main()
        return
    try:
        main()
    except Exception as error:
        code = 2 if isinstance(error, EXPECTED) else None
        code = getattr(error, "exit_code", code)
        if code is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(code) from None
