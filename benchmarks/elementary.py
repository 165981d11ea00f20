"""How far XLA's elementary functions are from the truth, on this machine's CPU.

    python benchmarks/elementary.py

Over all float32 numbers (or each `--stride`-th) where the function is finite, against
NumPy in float64; and over a million random float64 numbers, against NumPy's extended
precision (`longdouble`, 64 bits on x86; erf against SciPy's in float64). The unit is
2u|f|, that of `jnode.certify.enclosures.ULPS`. Functions are also measured one number
at a time, since XLA may use other code for what is left over of a vector.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

from jnode.certify.enclosures import ULPS  # noqa: E402

CHUNK = 2**18  # numbers that fit into a cache
CALLS = {
    "erf": (jax.lax.erf, None),
    "exp": (jnp.exp, np.exp),
    "log": (jnp.log, np.log),
    "log1p": (jnp.log1p, np.log1p),
    "log2": (jnp.log2, np.log2),
    "logistic": (jax.lax.logistic, lambda x: 1 / (1 + np.exp(-x))),
    "rsqrt": (jax.lax.rsqrt, lambda x: 1 / np.sqrt(x)),
    "sin": (jnp.sin, np.sin),
    "cos": (jnp.cos, np.cos),
    "softplus": (jax.nn.softplus, lambda x: np.logaddexp(x, 0)),
    "sqrt": (jnp.sqrt, np.sqrt),
    "tanh": (jnp.tanh, np.tanh),
}
# Slope at most 1 and values of at most 1: their error is absolute.
ABSOLUTE = ("sin", "cos")


def _error(name, found, true, dtype):
    """The largest error, in ulps beyond what numbers below the smallest may lose."""
    info = np.finfo(dtype)
    size = 1.0 if name in ABSOLUTE else np.abs(true)
    with np.errstate(invalid="ignore"):  # where both are infinite
        lost = np.maximum(np.abs(found - true) - info.tiny, 0)
    fine = np.isfinite(found) & np.isfinite(true) & (np.abs(true) <= info.max)
    ulps = np.where(fine, lost / np.maximum(info.eps * size, info.tiny), 0)
    return float(ulps.max(initial=0))


def _wild(found, true, dtype):
    """Whether something overflows, or is no number, where the truth is not so."""
    top = np.abs(true) < np.finfo(dtype).max * (1 - 1e-6)
    return int(np.sum(top & ~np.isfinite(found) & np.isfinite(true)))


def _true(name, x):
    call = CALLS[name][1]
    if call is None:
        from scipy.special import erf

        return erf(x.astype(np.float64))
    with np.errstate(all="ignore"):
        return call(x)


def single(name: str, stride: int) -> tuple[float, int]:
    """The largest error over float32 numbers, each `stride`-th of them, in ulps."""
    call, worst, wild = jax.jit(CALLS[name][0]), 0.0, 0
    for start in range(0, 2**32, CHUNK * stride):
        bits = np.arange(start, start + CHUNK * stride, stride, dtype=np.uint64)
        x = bits.astype(np.uint32).view(np.float32)
        x = x[np.isfinite(x) & ((x == 0) | (np.abs(x) >= np.finfo(np.float32).tiny))]
        if name in ("log", "log2", "sqrt", "rsqrt"):
            x = x[x > 0]
        x = x[x > -1] if name == "log1p" else x
        if not len(x):
            continue
        found = np.asarray(call(jnp.asarray(x))).astype(np.float64)
        true = _true(name, x.astype(np.float64))
        worst = max(worst, _error(name, found, true, np.float32))
        wild += _wild(found, true, np.float32)
    return worst, wild


def double(name: str, number: int) -> tuple[float, int]:
    """As `single`, over random float64 numbers."""
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], number) * 2.0 ** rng.uniform(-60, 9, number)
    if name in ("log", "log2", "sqrt", "rsqrt"):
        x = np.abs(x)
    x = x[x > -1] if name == "log1p" else x
    found = np.asarray(jax.jit(CALLS[name][0])(jnp.asarray(x)))
    exact = x if name == "erf" else x.astype(np.longdouble)
    true = _true(name, exact)
    return _error(name, found, true, np.float64), _wild(found, true, np.float64)


def scalars(name: str, number: int = 300) -> float:
    """The largest error of single numbers by themselves, in float32."""
    rng, call, worst = np.random.default_rng(1), jax.jit(CALLS[name][0]), 0.0
    for x in 2.0 ** rng.uniform(-20, 6, number):
        x = np.float32(x)
        found = np.asarray(call(jnp.asarray(x))).astype(np.float64)
        true = _true(name, np.float64(x))
        worst = max(worst, _error(name, found, true, np.float32))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=1, help="of float32 numbers")
    parser.add_argument("--names", nargs="*", default=list(CALLS))
    stride = parser.parse_args().stride
    lines = [
        "| function | float32 | one by one | float64, sample | allowed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in parser.parse_args().names:
        (one, wild), (two, wilder) = single(name, stride), double(name, 10**6)
        assert wild == wilder == 0, (name, wild, wilder)
        alone = scalars(name)
        lines.append(f"| {name} | {one:.2f} | {alone:.2f} | {two:.2f} | {ULPS[name]} |")
        print(lines[-1], flush=True)
    which = "all" if stride == 1 else f"each {stride}"
    head = f"float32: {which} of 2^32 numbers; jax {jax.__version__}, CPU.\n\n"
    path = Path(__file__).parent / "results" / "elementary.md"
    path.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
