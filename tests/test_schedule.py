"""The steps of a solve as a value: made once, returned, replayed and certified."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode import certify
from jnode.fields import Decay
from jnode.solvers import plan, solve_batch, trajectory
from tests.helpers import slow_but

ADAPTIVE = jnode.Solver("bosh3", rtol=1e-2, atol=1e-2)


class Twice(eqx.Module):
    """A field of a user's own with a package's field inside."""

    inside: list

    def __call__(self, t, y, args):
        return 2.0 * self.inside[0](t, y, args)


def twice(field):
    return jnode.Certified(Twice([field]), lambda own: 2.0 * own.inside[0].bounds())


AROUND = {
    "alone": lambda field: field,
    "sum": lambda field: field + Decay(0.5),
    "multiple": lambda field: 2.0 * field,
    "certified": twice,
}


def segments(key, count=3):
    keys = jr.split(key, count)
    make = lambda k: jnode.OrthoField((5,), activation="tanh", lipschitz=2.0, key=k)
    return jnode.PiecewiseField([make(k) for k in keys]) if count > 1 else make(key)


@pytest.mark.parametrize(
    ("kind", "count", "span"),
    [
        ("alone", 1, (0.0, 1.0)),
        ("sum", 3, (1.0, 0.0)),
        ("certified", 2, (0.2, 0.9)),
    ],
)
def test_an_adaptive_solve_returns_what_it_did(getkey, kind, count, span):
    field = AROUND[kind](segments(getkey(), count))
    y0, times = jr.normal(getkey(), (5,)), dict(zip(("t0", "t1"), span, strict=True))
    found = jnode.solve(field, y0, ADAPTIVE, **times)
    schedule, bare = found.schedule, plan(field, *span)
    assert schedule.steps == found.stats["num_accepted_steps"]
    assert schedule.edges.tolist() == bare.edges.tolist()
    assert (schedule.t0, schedule.t1) == span and bare.steps == bare.count == count
    fixed = ADAPTIVE.freeze(schedule)
    again = jnode.solve(field, y0, fixed, **times)
    np.testing.assert_allclose(again.y, found.y, atol=1e-5)
    np.testing.assert_allclose(again.schedule.times, schedule.times, atol=1e-12)
    assert again.stats["num_rejected_steps"] == 0
    # Its certificate holds of the map that takes these steps from everywhere.
    bound = certify.amplification(field, ADAPTIVE, schedule=schedule)
    assert bound == pytest.approx(
        float(certify.amplification(field, fixed, **times)), rel=1e-5
    )
    jacobian = jax.jacfwd(lambda y: jnode.solve(field, y, fixed, **times).y)(y0)
    largest = np.linalg.norm(np.asarray(jacobian), 2)
    assert largest <= bound and bound > 1
    assert certify.amplification(field, ADAPTIVE, **times) == jnp.inf


def test_schedules_survive_jit_and_vmap(getkey):
    field, states = segments(getkey()), jr.normal(getkey(), (2, 5))
    fixed = jnode.Solver("heun", steps=6)
    bound = certify.amplification(field, fixed)
    for solver in (ADAPTIVE, fixed):
        solve = lambda y, s=solver: jnode.solve(field, y, s)
        alone = [solve(y).schedule for y in states]
        inside = jax.jit(solve)(states[0]).schedule
        np.testing.assert_allclose(inside.times, alone[0].times, atol=1e-6)
        both = jax.vmap(solve)(states)
        with pytest.raises(ValueError, match="a schedule each"):
            _ = both.schedule
        second = jax.tree.map(lambda x: x[1], both).schedule
        np.testing.assert_allclose(second.times, alone[1].times, atol=1e-6)
    # Times that were rounded to float32 are still cut at the jumps.
    found = certify.amplification(field, fixed, schedule=second)
    assert found == pytest.approx(float(bound), rel=1e-5)


@pytest.mark.slow
def test_steps_that_were_not_kept(getkey):
    field, y0 = segments(getkey(), 1), jr.normal(getkey(), (5,))
    saved = diffrax.SaveAt(ts=jnp.asarray([0.5]))
    for solution in (
        solve_batch(field, y0[None], ADAPTIVE),
        jnode.solve(field, y0, ADAPTIVE, saveat=saved),
    ):
        with pytest.raises(ValueError, match="steps of this solve were not kept"):
            _ = solution.schedule
    steps = diffrax.SaveAt(steps=True)
    control = diffrax.PIDController(rtol=1e-3, atol=1e-3)
    for solver, chosen in ((ADAPTIVE, None), (diffrax.Bosh3(), control)):
        kept = jnode.solve(field, y0, solver, saveat=steps, stepsize_controller=chosen)
        ends = kept.ts[jnp.isfinite(kept.ts)]
        np.testing.assert_allclose(kept.schedule.times[1:], ends, atol=1e-6)
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda y: jnode.solve(field, y, ADAPTIVE).schedule.times)(y0)
    few = jnode.Solver("bosh3", rtol=1e-6, atol=1e-6, max_steps=3)
    with pytest.raises(ValueError, match="did not reach its end"):
        _ = jnode.solve(field, y0, few, throw=False).schedule
    # An event ends a schedule early.
    event = diffrax.Event(lambda t, y, args, **kwargs: t - 0.5)
    short = jnode.solve(field, y0, ADAPTIVE, saveat=steps, event=event)
    assert 0.5 <= short.schedule.t1 < 1


@pytest.mark.parametrize("kind", slow_but(AROUND, "sum"))
def test_a_field_is_cut_the_same_way_everywhere(getkey, kind):
    jumping = segments(getkey())
    assert isinstance(jumping, jnode.PiecewiseField)
    field, y0 = AROUND[kind](jumping), jr.normal(getkey(), (5,))
    solver = jnode.Solver("rk4", steps=6)
    schedule = solver.plan(field, 0.0, 1.0)
    assert [len(starts) for starts in schedule.starts] == [2, 2, 2]
    solution = jnode.solve(field, y0, solver)
    times, states = trajectory(field, y0, solver)
    assert times.tolist() == schedule.times.tolist()
    assert solution.schedule.edges.tolist() == schedule.edges.tolist()
    np.testing.assert_allclose(states[-1], solution.y, atol=1e-6)
    batch = solve_batch(field, y0[None], solver).y[0]
    np.testing.assert_allclose(batch, solution.y, atol=1e-5)
    # Each segment by itself: what the solve gives, and what is certified of it.
    y, bound, growth = y0, 1.0, 1.0
    for k in range(3):
        part = AROUND[kind](jumping.segment(k))
        here: dict[str, Any] = dict(t0=k / 3, t1=(k + 1) / 3)
        y = jnode.solve(part, y, solver.part(k / 3, (k + 1) / 3), **here).y
        bound *= float(
            certify.amplification(part, solver.part(k / 3, (k + 1) / 3), **here)
        )
        growth *= float(jnp.exp(part.lipschitz() / 3))
    np.testing.assert_allclose(solution.y, y, atol=1e-5)
    assert certify.amplification(field, solver) == pytest.approx(bound, rel=1e-5)
    envelope = certify.gronwall(field, jnp.asarray([0.0, 1.0]))[-1]
    assert envelope == pytest.approx(growth, rel=1e-4)


@pytest.mark.parametrize(
    ("solver", "options", "message"),
    [
        (jnode.Solver("rk4", steps=4), {}, "steps must be a multiple of 3, so that"),
        (jnode.Solver("rk4", grid=(0, 0.5, 1)), {}, "grid must hold 0.333333, the"),
        (jnode.Solver("rk4", steps=3), dict(t1=np.inf), "t1 must be a finite number"),
        (diffrax.Heun(), dict(ts=[0.0, 0.5, 1.0]), "ts must hold 0.333333, where"),
        (diffrax.Heun(), dict(ts=[0.0, 0.6, 0.5, 1.0]), "ts must increase from t0 = 0"),
        (diffrax.Heun(), dict(ts=[0.1, 1.0]), "ts must increase from t0 = 0 to t1 = 1"),
        (diffrax.Heun(), dict(ts=[0.0, 1.0], t0=1, t1=0), "ts must decrease from t0 ="),
        (diffrax.Heun(), dict(ts=[1.0]), "ts must increase from t0 = 0 to t1 = 1"),
        (diffrax.Heun(), dict(steps=0), "steps must be an integer of at least 1"),
        (diffrax.Heun(), dict(steps=2, ts=[0.0, 1.0]), "must not be given together"),
    ],
)
def test_one_message_for_each_bad_input(getkey, solver, options, message):
    field, said = twice(segments(getkey())), []
    calls = [
        lambda: jnode.solve(field, jnp.ones(5), solver, **options),
        lambda: certify.amplification(field, solver, **options),
    ]
    if isinstance(solver, jnode.Solver):
        calls += [
            lambda: trajectory(field, jnp.ones(5), solver, **options),
            lambda: solve_batch(field, jnp.ones((1, 5)), solver, **options),
        ]
    for call in calls:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        said.append(str(caught.value))
    assert len(set(said)) == 1


def test_a_schedule_stands_alone_in_a_certificate(getkey):
    field, y0 = segments(getkey(), 1), jr.normal(getkey(), (5,))
    schedule = jnode.solve(field, y0, ADAPTIVE).schedule
    with pytest.raises(ValueError, match="left out beside a schedule"):
        certify.amplification(field, ADAPTIVE, steps=3, schedule=schedule)
    with pytest.raises(ValueError, match=r"ts must hold 0\.333333"):
        certify.amplification(segments(getkey()), ADAPTIVE, schedule=schedule)
    with pytest.raises(TypeError, match="t1"):
        jax.jit(lambda t: certify.amplification(field, ADAPTIVE, t1=t))(1.0)
    still = jnode.solve(field, y0, ADAPTIVE, t0=0.5, t1=0.5).schedule
    assert certify.amplification(field, ADAPTIVE, schedule=still) == pytest.approx(1)
    with pytest.raises(ValueError, match="must have a length"):
        ADAPTIVE.freeze(still)


@pytest.mark.slow
def test_lengths_cover_the_rounding_of_times():
    """Diffrax takes a length as the difference of two times, each rounded."""
    method, growth = diffrax.Euler(), 1e3
    save = diffrax.SaveAt(t1=True)
    for width in np.linspace(0.9e-3, 1.1e-3, 9):
        span: dict[str, Any] = dict(t0=1000.0, t1=1000.0 + width)
        bound = certify.amplification(jnode.Bounds(growth), method, steps=1, **span)
        grow = lambda t, y, args: growth * y
        for saveat in (None, save):
            asked: dict[str, Any] = dict(steps=1, saveat=saveat, **span)
            found = jnode.solve(grow, jnp.ones(()), method, **asked)
            assert found.y <= bound
