"""Fixed steps of explicit Runge-Kutta methods: a scan that JAX differentiates.

Diffrax's loop costs half as much again at a known number of steps, since it must be
ready for steps that are rejected; this one is what a user would write.
"""

from typing import Any

import jax
from jaxtyping import Array, Float, PyTree

from jnode.fields.base import inner_form
from jnode.solvers.inside import combine, solve_inside
from jnode.solvers.schedule import Schedule
from jnode.solvers.solution import statistics
from jnode.solvers.state import RightHandSide
from jnode.solvers.tableaus import Rows


def step(
    field: Any, t: Any, h: Any, y: Float[Array, "*state"], method: Rows
) -> Float[Array, "*state"]:
    """One step of length `h` of an explicit method (`jnode.solvers.tableaus.rows`)."""
    a, b, c = method
    ks = []
    for i in range(len(b)):
        ks.append(field(t + c[i] * h, y + combine(h, a[i][:i], ks, y), None))
    return y + combine(h, b, ks, y)


def solve_fixed(
    tree: tuple[Any, PyTree],
    y0: Float[Array, "*state"],
    schedule: Schedule,
    method: Rows,
) -> tuple[Float[Array, "*state"], dict[str, Any]]:
    """The state after all steps, of a baked field and its arguments; statistics."""

    def segment(tree, y, part):
        field, args = tree
        times, lengths = part
        nfe = len(times) * len(method[1])
        form = inner_form(field)
        if form is not None and form.pays(nfe, y.shape[-1]):
            return solve_inside(form, y, method, times, lengths), {}
        side = RightHandSide(field, args)

        def body(y, this):
            return step(side, *this, y, method), None

        return jax.lax.scan(body, y, (times, lengths))[0], {}

    y1, _ = schedule.segments.over(tree, y0, schedule.parts, segment)
    steps = schedule.steps
    return y1, statistics(steps, steps, 0, steps * len(method[1]), 0)


def walk_fixed(
    tree: tuple[Any, PyTree],
    y0: Float[Array, "*state"],
    schedule: Schedule,
    method: Rows,
) -> list[Float[Array, "steps *state"]]:
    """The states after each step, segment by segment."""
    states = []
    for k, part in enumerate(schedule.parts):
        side = RightHandSide(*schedule.segments.at(tree, k))

        def body(y, this, side=side):
            after = step(side, *this, y, method)
            return after, after

        y0, found = jax.lax.scan(body, y0, part)
        states.append(found)
    return states
