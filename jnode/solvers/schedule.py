"""Which steps a solve takes, and which part of a field in pieces rules each.

A field that jumps in time is solved segment by segment between its jumps, so that no
step crosses one. Times are arrays, so that other times compile nothing anew and times
may be differentiated; which segments there are is static.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jnode.fields.piecewise import jumps, segment, segments


class Segments(eqx.Module):
    """The parts of $[t_0, t_1]$ between a field's jumps, in the order of the solve.

    - `edges`: $t_0$, the jumps on the way, $t_1$; decreasing where $t_1 < t_0$.
    - `marks`: all the field's jumps, between one time before and one after them.
    - `order`: of each segment, between which marks it lies. Integers, or an array of
        them where only the values of $t_0$ and $t_1$ tell the direction.
    - `sign`: -1 where time runs backwards, else 1; an array in that same case.
    """

    edges: Float[Array, " edges"]
    marks: tuple[float, ...] = eqx.field(static=True)
    order: tuple[int, ...] | Int[Array, " segments"]
    sign: int | Float[Array, ""]

    @property
    def t0(self) -> Float[Array, ""]:
        return self.edges[0]

    @property
    def t1(self) -> Float[Array, ""]:
        return self.edges[-1]

    @property
    def count(self) -> int:
        return len(self.order)

    @property
    def pairs(self) -> list[tuple[Float[Array, ""], Float[Array, ""]]]:
        """The start and the end of each segment."""
        return [(self.edges[k], self.edges[k + 1]) for k in range(self.count)]

    @property
    def inside(self) -> tuple[float, ...]:
        """The jumps on the way, in increasing order."""
        low, high = self.span
        return self.marks[low + 1 : high + 1]

    @property
    def span(self) -> tuple[int, int]:
        """The first and the last part between marks that the solve goes through."""
        if isinstance(self.order, tuple):
            return min(self.order), max(self.order)
        return 0, len(self.marks) - 2

    def at(self, tree: PyTree, k: int) -> PyTree:
        """`tree` in the `k`-th segment."""
        return segment(tree, self.order[k], self.marks)

    def over(
        self,
        tree: PyTree,
        y: PyTree,
        parts: list[Any],
        body: Callable[[PyTree, PyTree, Any], tuple[PyTree, PyTree]],
    ) -> tuple[PyTree, PyTree]:
        """The state after `y, stats = body(tree's segment, y, part)` for each segment.

        **Returns:** it, and the statistics summed. Where all parts have one shape, it
        is compiled once, and the weights of each are read as its turn comes.
        """
        if self.count == 1:
            return body(self.at(tree, 0), y, parts[0])
        like = {str(jax.tree.map(jnp.shape, part)) for part in parts}
        if len(like) > 1:
            stats = []
            for k, part in enumerate(parts):
                y, found = body(self.at(tree, k), y, part)
                stats.append(found)
            return y, jax.tree.map(lambda *counts: sum(counts), *stats)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        if isinstance(self.order, tuple):
            moving, still = segments(tree, self.order, self.marks)
        else:
            moving, still = self.order, tree

        def step(y, this):
            moving, part = this
            if isinstance(self.order, tuple):
                return body(eqx.combine(moving, still), y, part)
            return body(segment(still, moving, self.marks), y, part)

        y, stats = jax.lax.scan(step, y, (moving, stacked))
        return y, jax.tree.map(lambda x: jnp.sum(x, axis=0), stats)


class Schedule(eqx.Module):
    """Fixed steps: of each segment, where they start and how long they are.

    Lengths are negative where time runs backwards.
    """

    segments: Segments
    starts: tuple[Float[Array, "_"], ...]
    lengths: tuple[Float[Array, "_"], ...]

    @property
    def steps(self) -> int:
        return sum(len(starts) for starts in self.starts)

    @property
    def parts(self) -> list[Any]:
        return list(zip(self.starts, self.lengths, strict=True))


def is_known(*times: Any) -> bool:
    """Whether times are numbers and not traced."""
    return not any(isinstance(t, jax.core.Tracer) for t in times)


def cut(tree: PyTree, t0: Any, t1: Any, dtype: Any) -> Segments:
    """The segments of `tree` from `t0` to `t1`, their times of type `dtype`.

    **Raises:** `ValueError` for times that are not finite numbers, and, where one of
    them is traced, for a jump that cannot lie between them; at run time where traced
    times leave a jump outside.
    """
    times = jumps(tree)
    low, high = (times[0] - 1, times[-1] + 1) if times else (0.0, 1.0)
    marks = (low, *times, high)
    for name, t in (("t0", t0), ("t1", t1)):
        if is_known(t) and not math.isfinite(float(t)):
            raise ValueError(f"{name} must be a finite number, not {t}.")
    if is_known(t0, t1):
        start, end = float(t0), float(t1)
        near = 1e-9 * abs(end - start) + 4e-16 * max(abs(start), abs(end))
        first, last = min(start, end) + near, max(start, end) - near
        low, high = np.searchsorted(times, first, "right"), np.searchsorted(times, last)
        order = tuple(range(int(low), int(max(low, high)) + 1))
        inside = times[order[0] : order[-1]]
        if end < start:
            order, inside = order[::-1], inside[::-1]
        edges = jnp.asarray([start, *inside, end], dtype)
        return Segments(edges, marks, order, -1 if end < start else 1)
    t0, t1 = (jnp.asarray(t).astype(dtype) for t in _both(t0, t1))
    if not times:
        return Segments(jnp.stack([t0, t1]), marks, (0,), _sign(t0, t1))
    return _traced(times, t0, t1, marks, dtype)


def _both(t0, t1):
    return tuple(float(t) if is_known(t) else t for t in (t0, t1))


def _traced(times, t0, t1, marks, dtype):
    """All jumps are taken to lie between the times, which running then checks."""
    forward = _direction(times, t0, t1)
    inside = jnp.asarray(times, dtype)
    order = tuple(range(len(marks) - 1))
    low, high = (t0, t1) if forward else (t1, t0)
    if forward is None:
        ahead = t0 < t1
        inside = jnp.where(ahead, inside, inside[::-1])
        order = jnp.where(ahead, jnp.arange(len(order)), jnp.arange(len(order))[::-1])
        low, high = jnp.minimum(t0, t1), jnp.maximum(t0, t1)
    elif not forward:
        inside, order = inside[::-1], order[::-1]
    edges = jnp.concatenate([t0[None], inside, t1[None]])
    edges = eqx.error_if(
        edges,
        (low >= times[0]) | (high <= times[-1]),
        f"t0 and t1 must have all jumps of the field, from {times[0]:g} to "
        f"{times[-1]:g}, between them where one of them is traced: give Python numbers "
        "to solve over some of its pieces.",
    )
    sign = _sign(t0, t1) if forward is None else (1 if forward else -1)
    return Segments(edges, marks, order, sign)


def _sign(t0, t1):
    return jnp.where(t1 < t0, -1, 1).astype(t0.dtype)


def _direction(times, t0, t1):
    """Whether time must run forwards for all jumps to lie inside, if known."""
    for name, t, other in (("t0", t0, True), ("t1", t1, False)):
        if is_known(t):
            if float(t) <= times[0]:
                return other
            if float(t) >= times[-1]:
                return not other
            raise ValueError(
                f"{name} must lie before or after all jumps of the field, from "
                f"{times[0]:g} to {times[-1]:g}, where the other time is traced; it is "
                f"{float(t):g}."
            )
    return None


def plan(
    tree: PyTree,
    t0: Any,
    t1: Any,
    shares: Float[np.ndarray, " times"],
    dtype: Any,
    name: str,
) -> Schedule:
    """The schedule of fixed steps that end at these shares of the interval.

    **Arguments:** the field (and whatever else jumps), the times, the shares from 0 to
    1, the type of the times, and what gave the shares: "steps", which are equal, "grid"
    or "ts".

    **Raises:** `ValueError` for steps that cross a jump; as `cut`.
    """
    parts = cut(tree, t0, t1, dtype)
    as_array = functools.partial(jnp.asarray, dtype=dtype)
    if not is_known(t0, t1):
        return _traced_plan(parts, shares, name)
    start, end = float(t0), float(t1)
    ends = start + (end - start) * shares
    lengths = (end - start) * np.diff(shares)
    inside = parts.inside[::-1] if end < start else parts.inside
    cuts = [int(np.argmin(np.abs(ends - jump))) for jump in inside]
    for jump, at in zip(inside, cuts, strict=True):
        if abs(ends[at] - jump) > 1e-9 * max(abs(end - start), 1e-6 * abs(jump)):
            raise ValueError(_crossing(jump, inside, start, end, len(lengths), name))
    pairs = list(zip([0, *cuts], [*cuts, len(lengths)], strict=True))
    return Schedule(
        parts,
        tuple(as_array(ends[a:b]) for a, b in pairs),
        tuple(as_array(lengths[a:b]) for a, b in pairs),
    )


def _traced_plan(parts, shares, name):
    edges, count, steps = parts.edges, parts.count, len(shares) - 1
    if count > 1:
        if name != "steps":
            raise ValueError(
                f"t0 and t1 must be Python numbers for a field that jumps and a {name}:"
                " where they are traced, give equal steps."
            )
        if steps % count:
            raise ValueError(
                f"steps must be a multiple of the field's {count} segments between its "
                f"jumps where t0 or t1 is traced, not {steps}."
            )
        shares = np.arange(steps // count + 1) / (steps // count)
    starts, lengths = [], []
    for a, b in parts.pairs:
        starts.append(a + (b - a) * jnp.asarray(shares[:-1], edges.dtype))
        lengths.append((b - a) * jnp.asarray(np.diff(shares), edges.dtype))
    return Schedule(parts, tuple(starts), tuple(lengths))


def _crossing(jump, inside, start, end, steps, name):
    share = (jump - start) / (end - start)
    if name == "grid":
        return (
            f"grid must hold {share:g}, the field's jump at t = {jump:g} as a share of "
            "the interval, so that no step crosses it."
        )
    if name == "ts":
        return f"ts must hold {jump:g}, where the field jumps: no step may cross it."
    shares = (np.asarray(inside) - start) / (end - start)
    for fewest in range(2, 1025):
        if np.all(np.abs(shares * fewest - np.round(shares * fewest)) < 1e-9 * fewest):
            return (
                f"steps must be a multiple of {fewest}, so that none crosses the "
                f"field's jump at t = {jump:g}, not {steps}."
            )
    return (
        f"steps must end at t = {jump:g}, where the field jumps, and equal ones do not:"
        " give a grid or ts that holds it."
    )
