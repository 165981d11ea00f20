"""The steps of a solve, and the segment of a piecewise field for each of them.

A field that jumps in time is solved segment by segment between its jumps, so that no
step crosses one. Times are arrays, so that other times do not recompile and gradients
with respect to times exist; the list of segments is static.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from jnode._checks import check_positive
from jnode.fields.piecewise import marks, segment, segments


class Schedule(eqx.Module):
    """The steps from $t_0$ to $t_1$, in segments between the jumps of a field.

    It is made by `plan` and `jnode.Solver.plan`, and `jnode.Solution.schedule` gives
    that of a solve. Known times are NumPy arrays in double precision, and lengths are
    their exact differences; traced times are JAX arrays.

    - `edges`: $t_0$, the jumps on the way, $t_1$; decreasing where $t_1 < t_0$.
    - `starts`, `lengths`: for each segment, where its steps begin and how long they
        are, negative if time runs backwards. If an adaptive solver will choose the
        steps, a segment counts as one step.
    - `marks`: all jumps of the field, with one time before the first and one after the
        last.
    - `order`: the index of the marks between which each segment lies, in the order of
        the solve.
    - `direction`: 1 if time runs forwards, -1 if backwards; `None` if that is known
        only at run time, and then `order` is that of time.
    """

    edges: Float[Any, " edges"]
    starts: tuple[Float[Any, " _"], ...]
    lengths: tuple[Float[Any, " _"], ...]
    marks: tuple[float, ...] = eqx.field(static=True)
    order: tuple[int, ...] = eqx.field(static=True)
    direction: int | None = eqx.field(static=True)

    @property
    def t0(self) -> Float[Any, ""]:
        return self.edges[0]

    @property
    def t1(self) -> Float[Any, ""]:
        return self.edges[-1]

    @property
    def count(self) -> int:
        """The number of segments."""
        return len(self.order)

    @property
    def steps(self) -> int:
        """The number of steps."""
        return sum(len(starts) for starts in self.starts)

    @property
    def times(self) -> Float[Any, " times"]:
        """The times at which steps begin, and the end of the last one."""
        join = np.concatenate if is_known(self) else jnp.concatenate
        return join([*self.starts, self.edges[-1:]])

    @property
    def inside(self) -> tuple[float, ...]:
        """The jumps between the two ends, in increasing order."""
        return self.marks[min(self.order) + 1 : max(self.order) + 1]

    @property
    def sign(self) -> int | Float[Array, ""]:
        """The direction; an array if it is known only at run time."""
        if self.direction is not None:
            return self.direction
        return jnp.where(self.t1 < self.t0, -1, 1).astype(self.edges.dtype)

    @property
    def parts(self) -> list["Schedule"]:
        """The schedule of each segment by itself, without jumps."""
        return [
            Schedule(
                self.edges[k : k + 2],
                (self.starts[k],),
                (self.lengths[k],),
                (0.0, 1.0),
                (0,),
                self.direction,
            )
            for k in range(self.count)
        ]

    def numbers(self) -> list[tuple[int, float, float]]:
        """The segment, start and length of each step, for known times."""
        return [
            (k, float(t), float(h))
            for k, each in enumerate(zip(self.starts, self.lengths, strict=True))
            for t, h in zip(*each, strict=True)
        ]

    def astype(self, dtype: Any) -> "Schedule":
        """The same times, rounded to a dtype."""
        convert = np.asarray if is_known(self) else jnp.asarray
        return jax.tree.map(lambda times: convert(times, dtype), self)

    def at(self, tree: PyTree, k: int) -> PyTree:
        """`tree` in the `k`-th segment."""
        index = self.order[k]
        if self.direction is None:
            index = jnp.where(self.sign < 0, self.count - 1 - index, index)
        return segment(tree, index, self.marks)

    def over(
        self,
        tree: PyTree,
        y: PyTree,
        body: Callable[[PyTree, PyTree, "Schedule"], tuple[PyTree, PyTree]],
    ) -> tuple[PyTree, PyTree]:
        """The state after `y, out = body(tree's segment, y, part)` for each segment.

        **Returns:** that state, and the outputs of all segments concatenated along the
        first axis. If all parts have the same shape, the body is compiled once, as a
        scan over the segments' weights.
        """
        parts = self.parts
        if self.count == 1:
            return body(self.at(tree, 0), y, parts[0])
        if len({len(starts) for starts in self.starts}) > 1:
            outs = []
            for k, part in enumerate(parts):
                y, out = body(self.at(tree, k), y, part)
                outs.append(out)
            return y, jax.tree.map(lambda *each: jnp.concatenate(each), *outs)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        if self.direction is None:
            order = jnp.asarray(self.order)
            moving, still = jnp.where(self.sign < 0, order[::-1], order), tree
            here = lambda index, tree: segment(tree, index, self.marks)  # noqa: E731
        else:
            moving, still = segments(tree, self.order, self.marks)
            here = eqx.combine

        def step(y, this):
            moving, part = this
            return body(here(moving, still), y, part)

        y, outs = jax.lax.scan(step, y, (moving, stacked))
        return y, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outs)

    def cut(self, tree: PyTree) -> "Schedule":
        """The same steps, at known times, divided into the segments of another field.

        **Raises:** `ValueError` where a step would cross one of its jumps.
        """
        return _recut(marks(tree), np.asarray(self.times))

    def refined(self, ends: Float[Any, " ends"]) -> "Schedule":
        """The steps that a solver took on these segments, from their recorded ends.

        **Arguments:** the times at which steps ended, `[ends]`, in order and in the
        precision of the solve; infinite ones are padding.
        """
        times = np.append(np.asarray(self.t0, ends.dtype), ends[np.isfinite(ends)])
        return _recut(self.marks, times, float(self.t0), float(self.t1))


def everywhere(tree: PyTree) -> Schedule:
    """All segments of a field; the first and the last extend to infinity."""
    times = marks(tree)
    return _known(times, times[0], times[-1], None, "ts")


def is_known(*trees: PyTree) -> bool:
    """Whether nothing in these trees is traced."""
    return not any(isinstance(x, Tracer) for x in jax.tree.leaves(trees))


def plan(
    tree: PyTree,
    t0: Any,
    t1: Any,
    *,
    dtype: Any = None,
    steps: int | None = None,
    grid: Sequence[float] | None = None,
    ts: Any = None,
) -> Schedule:
    """The schedule of a field from `t0` to `t1`.

    **Arguments:** the field, or any tree that holds it; the times, which may be traced,
    and the dtype of traced ones; and the steps: the number of equal steps, or the
    fractions of the interval (from 0 to 1) at which they end, or the times from `t0` to
    `t1`. Without any of these there is one step for each segment, in which an adaptive
    solver chooses its own.

    **Raises:** `ValueError` for times that are not finite or out of order, for fewer
    than one step, and for steps that would cross a jump; an error at run time if `t0`
    or `t1` is traced and a jump does not lie between them.
    """
    for name, t in (("t0", t0), ("t1", t1)):
        if is_known(t) and not math.isfinite(float(t)):
            raise ValueError(f"{name} must be a finite number, not {t}.")
    if steps is not None and ts is not None:
        raise ValueError(
            "steps and ts must not be given together: each says what steps to take."
        )
    times, name, shares = marks(tree), "grid", grid
    if steps is not None:
        check_positive(steps=steps)
        name, shares = "steps", np.arange(steps + 1) / steps
    if shares is not None:
        shares = np.asarray(shares, np.float64)
    if ts is not None:
        ts = checked_times(ts, t0, t1, whole=True)
        return _known(times, float(t0), float(t1), ts, "ts")
    if not is_known(t0, t1):
        return _traced(times, t0, t1, dtype, shares, name)
    t0, t1 = float(t0), float(t1)
    ends = None if shares is None else t0 + (t1 - t0) * shares
    return _known(times, t0, t1, ends, name)


def checked_times(
    ts: Any, t0: Any, t1: Any, *, whole: bool
) -> Float[np.ndarray, " times"]:
    """Checks known times: in order between `t0` and `t1`, and including both if
    `whole`.

    **Raises:** `ValueError` for others.
    """
    if not is_known(ts, t0, t1):
        raise ValueError(
            "ts, t0 and t1 must be known numbers; where they are traced, give "
            "stepsize_controller=diffrax.StepTo(ts)."
        )
    ts, t0, t1 = np.asarray(ts, np.float64), float(t0), float(t1)
    near = 1e-6 * abs(t1 - t0)
    fine = ts.ndim == 1 and len(ts) > whole and np.all((t1 - t0) * np.diff(ts) > 0)
    if fine and whole:
        fine = abs(ts[0] - t0) <= near and abs(ts[-1] - t1) <= near
    elif fine:
        fine = np.all((min(t0, t1) <= ts) & (ts <= max(t0, t1)))
    if not fine:
        way = "increase" if t1 > t0 else "decrease"
        raise ValueError(f"ts must {way} from t0 = {t0:g} to t1 = {t1:g}; it is {ts}.")
    return np.concatenate([[t0], ts[1:-1], [t1]]) if whole else ts


def _recut(marks, times, *ends):
    """The schedule of recorded times, which were rounded to their dtype."""
    near = 4 * float(jnp.finfo(times.dtype).eps) * np.max(np.abs(times))
    times = times.astype(np.float64)
    for jump in (*marks[1:-1], *ends):
        # The rounded jump itself, if a step ended there, or the last number before it.
        times[np.abs(times - jump) <= near] = jump
    times = times[np.append(True, np.diff(times) != 0)]
    return _known(marks, times[0], times[-1], times, "ts")


def _known(marks, t0, t1, ends, name):
    """The schedule of known times; without `ends`, one step for each segment."""
    near = 1e-9 * abs(t1 - t0) + 4e-16 * max(abs(t0), abs(t1))
    first, last = min(t0, t1) + near, max(t0, t1) - near
    low = int(np.searchsorted(marks[1:-1], first, "right"))
    high = int(np.searchsorted(marks[1:-1], last))
    order = tuple(range(low, max(low, high) + 1))
    inside = marks[order[0] + 1 : order[-1] + 1]
    direction = -1 if t1 < t0 else 1
    if direction < 0:
        order, inside = order[::-1], inside[::-1]
    edges = np.asarray([t0, *inside, t1], np.float64)
    ends = edges if ends is None else np.array(ends, np.float64)
    cuts = ends_at(ends, inside, name)
    ends[cuts] = inside
    lengths = np.diff(ends)
    pairs = list(pairwise([0, *cuts, len(lengths)]))
    return Schedule(
        edges,
        tuple(ends[a:b] for a, b in pairs),
        tuple(lengths[a:b] for a, b in pairs),
        marks,
        order,
        direction,
    )


def _traced(marks, t0, t1, dtype, shares, name):
    """The schedule of traced times. All jumps are assumed to lie between them, which is
    checked at run time."""
    jumps, count = marks[1:-1], len(marks) - 1
    if jumps and shares is not None:
        if name != "steps":
            raise ValueError(
                f"t0 and t1 must be Python numbers for a field that jumps and a {name}:"
                " where they are traced, give equal steps."
            )
        if (len(shares) - 1) % count:
            raise ValueError(
                f"steps must be a multiple of the field's {count} segments between its "
                f"jumps where t0 or t1 is traced, not {len(shares) - 1}."
            )
        shares = shares[: (len(shares) - 1) // count + 1] * count
    t0, t1 = (jnp.asarray(float(t) if is_known(t) else t) for t in (t0, t1))
    edges = _edges(jumps, t0.astype(dtype), t1.astype(dtype))
    shares = np.arange(2.0) if shares is None else shares
    starts, widths = (jnp.asarray(x, dtype) for x in (shares[:-1], np.diff(shares)))
    return Schedule(
        edges,
        tuple(a + (b - a) * starts for a, b in pairwise(edges)),
        tuple((b - a) * widths for a, b in pairwise(edges)),
        marks,
        tuple(range(count)),
        None,
    )


def _edges(jumps, t0, t1):
    if not jumps:
        return jnp.stack([t0, t1])
    inside = jnp.asarray(jumps, t0.dtype)
    inside = jnp.where(t0 < t1, inside, inside[::-1])
    return eqx.error_if(
        jnp.concatenate([t0[None], inside, t1[None]]),
        (jnp.minimum(t0, t1) >= jumps[0]) | (jnp.maximum(t0, t1) <= jumps[-1]),
        f"t0 and t1 must have all jumps of the field, from {jumps[0]:g} to "
        f"{jumps[-1]:g}, between them where one of them is traced: give Python numbers "
        "to solve over some of its segments.",
    )


def ends_at(
    ends: Float[np.ndarray, " times"], jumps: Sequence[float], name: str
) -> list[int]:
    """For each jump, the index of the step that ends there.

    **Raises:** `ValueError` if a step crosses a jump; the message names the argument
    that gave the steps: "steps", "grid" or "ts".
    """
    span = abs(ends[-1] - ends[0])
    cuts = [int(np.argmin(np.abs(ends - jump))) for jump in jumps]
    for jump, at in zip(jumps, cuts, strict=True):
        if abs(ends[at] - jump) > 1e-9 * max(span, 1e-6 * abs(jump)):
            raise ValueError(_crossing(jump, jumps, ends, name))
    return cuts


def _crossing(jump, jumps, ends, name):
    shares = (np.asarray([jump, *jumps]) - ends[0]) / (ends[-1] - ends[0])
    if name == "grid":
        return (
            f"grid must hold {shares[0]:g}, the field's jump at t = {jump:g} as a share"
            " of the interval, so that no step crosses it."
        )
    if name == "ts":
        return f"ts must hold {jump:g}, where the field jumps: no step may cross it."
    for fewest in range(2, 1025):
        if np.all(np.abs(shares * fewest - np.round(shares * fewest)) < 1e-9 * fewest):
            return (
                f"steps must be a multiple of {fewest}, so that none crosses the "
                f"field's jump at t = {jump:g}, not {len(ends) - 1}."
            )
    return (
        f"steps must end at t = {jump:g}, where the field jumps, and equal ones do not:"
        " give a grid or ts that holds it."
    )
