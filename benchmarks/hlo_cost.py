"""What a program costs: arithmetic as JAX traced it, cycles and exchanges as compiled.

The totals that XLA gives for a program count the body of a loop once and a product in
float32 as one pass of bfloat16. So FLOPs are counted here in what JAX traced, where the
lengths of loops are known, and cycles in the compiled text, where the compiler writes
its estimate beside each instruction.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_WHILE = re.compile(r" while\(.*?\bcondition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CONSTANT = re.compile(r" s32\[\]\S* constant\((\d+)\)")
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"\b(?:body|condition|to_apply|calls|true_computation|false_computation)"
    r"=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\b(?:branch_computations|calls)=\{([^}]*)\}")
_ENTRY = re.compile(r"^ENTRY %?([\w.\-]+) ", re.MULTILINE)
KINDS = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)
_COLLECTIVE = re.compile(rf" ({'|'.join(KINDS)})(?:-start)?\(")
# How many bfloat16 products the compiler makes of one float32 product.
PASSES = {"HIGHEST": 6, "HIGH": 3, "DEFAULT": 1}


@dataclasses.dataclass(frozen=True)
class Work:
    """Arithmetic of matrix products and convolutions, on one device.

    - `flops`: as the algorithm has it.
    - `mxu_flops`: as the matrix unit does it, with its passes for float32.
    """

    flops: float
    mxu_flops: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.mxu_flops + other.mxu_flops)

    def times(self, n: float) -> "Work":
        return Work(n * self.flops, n * self.mxu_flops)


def work(f: Callable, *args: Any, turns: int, platform: str) -> Work:
    """The arithmetic of `f(*args)`, inside `shard_map` of one device.

    **Arguments:** the function, its arguments as arrays or their shapes; the turns that
    a loop takes whose length is not known beforehand; and the platform ("cpu", "cuda"
    or "tpu") whose branches of `jax.lax.platform_dependent` count.
    """
    return _work(jax.make_jaxpr(f)(*args).jaxpr, turns, platform)


def _work(jaxpr, turns, platform) -> Work:
    total = Work(0, 0)
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            flops = _product(eqn)
            passes = PASSES[_precision(eqn)] if _is_float32(eqn) else 1
            total += Work(flops, flops * passes)
            continue
        inner = [_work(j, turns, platform) for j in _inner(eqn.params)]
        if name == "cond":
            chosen = _branch(eqn.params.get("branches_platforms"), platform)
            most = max(inner, key=lambda w: w.flops)
            total += most if chosen is None else inner[chosen]
        elif inner:
            times = {"scan": eqn.params.get("length"), "while": turns}.get(name, 1)
            total += sum(inner[1:], start=inner[0]).times(times)
    return total


def _branch(of_platforms, platform) -> int | None:
    """Which branch of a `cond` this platform takes, if that is what decides."""
    if of_platforms is None:
        return None
    here = [i for i, names in enumerate(of_platforms) if names and platform in names]
    return here[0] if here else of_platforms.index(None)


def _inner(params) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, jax.extend.core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, jax.extend.core.Jaxpr):
                yield item


def _product(eqn) -> float:
    left, right = (v.aval.shape for v in eqn.invars[:2])
    out = eqn.outvars[0].aval.shape
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        depth = math.prod(left[i] for i in contracted)
    else:
        numbers = eqn.params["dimension_numbers"]
        depth = math.prod(right) / right[numbers.rhs_spec[0]]
    return 2.0 * math.prod(out) * depth


def _precision(eqn) -> str:
    precision = eqn.params["precision"]
    first = precision[0] if isinstance(precision, tuple) else precision
    return "DEFAULT" if first is None else first.name


def _is_float32(eqn) -> bool:
    return eqn.invars[0].aval.dtype == "float32"


def cycles(hlo: str, *, turns: int) -> float:
    """The compiler's estimate of a TPU program's cycles, loops multiplied out.

    What waits for memory or for other devices outside of compute instructions is not
    in it.

    **Arguments:** the compiled text, and the turns of a loop whose length the text does
    not tell.
    """
    entry = _ENTRY.search(hlo)
    if entry is None:
        raise ValueError("hlo must be the text of a compiled program with an ENTRY.")
    return _cycles(computations(hlo), entry[1], turns)


def _cycles(bodies, name, turns) -> float:
    total = 0.0
    for line in bodies.get(name, ()):
        loop = _WHILE.search(line)
        found = _CYCLES.search(line)
        if loop:
            condition, body = loop.groups()
            total += _trips(bodies, condition, turns) * _cycles(bodies, body, turns)
        elif found:
            total += int(found[1])
        elif " conditional(" in line:
            total += max(_cycles(bodies, branch, turns) for branch in called(line))
        elif " call(" in line or " async-start(" in line:
            total += sum(_cycles(bodies, inner, turns) for inner in called(line))
    return total


def _trips(bodies, condition, turns) -> int:
    """From `i < constant`, which is what is left of a loop of known length."""
    constants = [m[1] for line in bodies[condition] if (m := _CONSTANT.search(line))]
    return int(constants[0]) if len(constants) == 1 else turns


@dataclasses.dataclass(frozen=True)
class Collectives:
    """Exchanges between devices in a compiled program.

    - `counts`: how many of each kind, by name; empty for none.
    - `in_loops`: how many of them lie inside a loop, and so run at each turn.
    """

    counts: dict[str, int]
    in_loops: int

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def collectives(hlo: str) -> Collectives:
    """Counts the collectives of a program.

    **Arguments:** its text, `jax.jit(f).lower(...).compile().as_text()`.
    """
    bodies = computations(hlo)
    counts, inside = Counter(), 0
    looped = _reached(bodies, _loops(bodies))
    for name, lines in bodies.items():
        found = [m[1] for line in lines if (m := _COLLECTIVE.search(line))]
        counts.update(found)
        inside += len(found) if name in looped else 0
    return Collectives(dict(counts), inside)


def _loops(bodies):
    lines = (line for lines in bodies.values() for line in lines)
    return {
        name for line in lines for m in _WHILE.finditer(line) for name in m.groups()
    }


def _reached(bodies, roots):
    """All computations that these call, themselves included."""
    reached, waiting = set(), list(roots)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [n for line in bodies.get(name, ()) for n in called(line)]
    return reached


def computations(hlo: str) -> dict[str, list[str]]:
    """The instructions of each computation of a program, by name."""
    bodies, current = {}, None
    for line in hlo.splitlines():
        header = _HEADER.match(line)
        if header:
            current = bodies.setdefault(header[1], [])
        elif current is not None and line.startswith("  "):
            current.append(line)
    return bodies


def called(line: str) -> list[str]:
    """The computations that an instruction calls."""
    names = _CALLED.findall(line)
    for group in _BRANCHES.findall(line):
        names += [name.strip().lstrip("%") for name in group.split(",")]
    return names
