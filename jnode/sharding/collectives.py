"""What devices exchange, read from the compiled program."""

import dataclasses
import re
from collections import Counter

KINDS = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" ({'|'.join(KINDS)})(?:-start)?\(")
_CALLED = re.compile(
    r"\b(?:body|condition|to_apply|calls|true_computation|false_computation)"
    r"=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\b(?:branch_computations|calls)=\{([^}]*)\}")
_LOOP = re.compile(r" while\(.*?\bcondition=%?([\w.\-]+), body=%?([\w.\-]+)")


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


def _loops(bodies):
    lines = (line for lines in bodies.values() for line in lines)
    return {name for line in lines for m in _LOOP.finditer(line) for name in m.groups()}


def _reached(bodies, roots):
    """All computations that these call, themselves included."""
    reached, waiting = set(), list(roots)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [n for line in bodies.get(name, ()) for n in called(line)]
    return reached
