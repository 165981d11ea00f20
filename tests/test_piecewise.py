"""Unequal steps, frozen steps, and fields whose weights change with time."""

import dataclasses
import itertools
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
from jnode.fields.piecewise import jumps, segment, segments
from jnode.solvers import solve_batch, trajectory
from tests.helpers import slow_but

GRID = (0.0, 0.1, 0.5, 1.0)


def make_field(key, count=3, kind=jnode.OrthoField, **options):
    return jnode.PiecewiseField(
        [kind((5,), lipschitz=2.0, key=k, **options) for k in jr.split(key, count)]
    )


def test_grid_is_what_step_by_step_gives(getkey):
    field = jnode.OrthoField((5,), lipschitz=2.0, time=True, key=getkey())
    y = y0 = jr.normal(getkey(), (5,))
    whole = jnode.Solver("heun", grid=GRID)
    assert whole.steps == 3
    one = jnode.Solver("heun", steps=1)
    for t0, t1 in itertools.pairwise(GRID):
        y = jnode.solve(field, y, one, t0=t0, t1=t1).y
    ours = jnode.solve(field, y0, whole)
    assert jnp.abs(ours.y - y).max() < 1e-5
    assert (ours.stats["num_steps"], ours.stats["nfe"]) == (3, 6)
    checkpointed = dataclasses.replace(whole, adjoint="checkpointed")
    assert jnp.abs(jnode.solve(field, y0, checkpointed).y - y).max() < 1e-5
    times, states = trajectory(field, y0, whole)
    assert np.allclose(times, GRID) and jnp.abs(states[-1] - y).max() < 1e-5
    # An equal grid is equal steps.
    equal = jnode.Solver("rk4", grid=(0, 0.5, 1))
    two = jnode.solve(field, y0, jnode.Solver("rk4", steps=2)).y
    assert jnp.abs(jnode.solve(field, y0, equal).y - two).max() < 1e-6


WAYS = [
    jnode.Solver("rk4", steps=6),
    jnode.Solver("heun", grid=(0, 0.2, 1 / 3, 2 / 3, 0.7, 1)),
    jnode.Solver("tsit5"),
    jnode.Solver("euler", steps=3, adjoint="checkpointed"),
]


@pytest.mark.parametrize("solver", slow_but(WAYS, WAYS[1]), ids=str)
def test_pieces_one_after_another(getkey, solver):
    field = make_field(getkey())
    y = y0 = jr.normal(getkey(), (5,))
    nfe = 0
    for k in range(3):
        part = solver.part(k / 3, (k + 1) / 3)
        solution = jnode.solve(field.segment(k), y, part, t0=k / 3, t1=(k + 1) / 3)
        y, nfe = solution.y, nfe + int(solution.stats["nfe"])
    whole = jax.jit(lambda y: jnode.solve(field, y, solver))(y0)
    assert jnp.abs(whole.y - y).max() < 1e-5
    assert whole.stats["nfe"] == nfe
    times, states = trajectory(field, y0, solver)
    assert (np.diff(times) > 0).all() and len(times) == len(states)
    assert jnp.abs(states[-1] - y).max() < 1e-3
    # The weights of every segment get a gradient.
    grad = jax.grad(lambda f: jnp.sum(jnode.solve(f, y0, solver).y))(field)
    assert (jnp.abs(grad.segments.first_bias).max(axis=1) > 0).all()


def test_pieces_rule_in_their_time(getkey):
    field, y = make_field(getkey()), jr.normal(getkey(), (5,))
    for t, k in ((-1.0, 0), (0.0, 0), (0.32, 0), (0.34, 1), (0.99, 2), (1.0, 2)):
        assert jnp.abs(field(t, y) - field.segment(k)(t, y)).max() < 1e-6
    assert field.times() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_certificate_is_the_product_over_pieces_and_steps(getkey):
    field = make_field(getkey())
    single = jnode.OrthoField((5,), lipschitz=2.0, key=getkey())
    near = lambda x: pytest.approx(float(x), rel=1e-3)
    euler = jnode.Solver("euler", steps=3)
    assert float(certify.amplification(field, euler)) == near((1 + 2 / 3) ** 3)
    grid = jnode.Solver("euler", grid=GRID)
    product = (1 + 0.2) * (1 + 0.8) * (1 + 1.0)
    assert float(certify.amplification(single, grid)) == near(product)
    times = jnp.asarray([0.0, 0.2, 1.0])
    assert certify.gronwall(field, times).tolist() == near_list(np.exp([0, 0.4, 2.0]))
    # A time-dependent L(t): segments of different constants.
    mixed = jnode.PiecewiseField(
        [
            jnode.OrthoField((5,), lipschitz=3.0, learnable=True, key=getkey()),
            jnode.OrthoField((5,), lipschitz=3.0, learnable=True, key=getkey()),
        ]
    )
    raw = jnp.asarray([-20.0, 20.0])  # constants of all but 0 and 3
    mixed = eqx.tree_at(lambda f: f.segments.scale.raw, mixed, raw)
    assert certify.gronwall(mixed, times).tolist() == near_list(np.exp([0, 0, 1.5]))
    two = jnode.Solver("euler", steps=2)
    assert float(certify.amplification(mixed, two)) == near(1 + 1.5)


def near_list(values):
    return pytest.approx([float(v) for v in values], rel=1e-3)


@pytest.mark.parametrize(
    ("count", "adaptive"),
    [(1, jnode.Solver("dopri5", rtol=1e-5)), (2, jnode.Solver("bosh3"))],
)
def test_frozen_steps_give_the_adaptive_result(getkey, count, adaptive):
    field = make_field(getkey(), count)
    field = field if count > 1 else field.segment(0)
    y0, other = jr.normal(getkey(), (2, 5))
    taken = jnode.solve(field, y0, adaptive).schedule
    frozen = adaptive.freeze(taken)
    solve = eqx.filter_jit(jnode.solve)
    ours, theirs = (solve(field, y0, s) for s in (frozen, adaptive))
    assert jnp.abs(ours.y - theirs.y).max() < 1e-5
    assert ours.stats["num_steps"] == theirs.stats["num_accepted_steps"]
    assert jnp.isfinite(certify.amplification(field, frozen))
    # From elsewhere the same steps, and what the tolerance suggests.
    near = solve(field, other, frozen).y
    assert jnp.abs(near - solve(field, other, adaptive).y).max() < 0.1
    with pytest.raises(ValueError, match="must be adaptive"):
        frozen.freeze(taken)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, y: jnode.solve(f, y, jnode.Solver("rk4", steps=4)), "multiple of"),
        (
            lambda f, y: jnode.solve(f, y, jnode.Solver("rk4", grid=(0, 0.5, 1))),
            "must hold 0.333",
        ),
        (
            lambda f, y: jnode.solve(f, y, jnode.Solver("rk4", steps=3), t1=2.0),
            "multiple of 6",
        ),
    ],
)
def test_steps_that_cross_a_jump_are_refused(getkey, call, message):
    with pytest.raises(ValueError, match=message):
        call(make_field(getkey()), jnp.ones(5))


class Own(eqx.Module):
    """A field of a user's own with a package's field inside."""

    inside: list

    def __call__(self, t, y, args):
        return 2.0 * self.inside[0](t, y, args)


def test_jumps_are_found_wherever_they_stand(getkey):
    three, six = make_field(getkey()), make_field(getkey(), 6)
    inner = jnode.PiecewiseField([make_field(getkey(), 2) for _ in range(2)])
    times = [1 / 3, 2 / 3]
    for tree in (three, three + Decay(1.0), 2.0 * three, Own([three]), {"a": (three,)}):
        assert jumps(tree) == pytest.approx(times)
    # Thirds are sixths, up to rounding; segments of segments jump when they do.
    assert jumps((three, six)) == pytest.approx([k / 6 for k in range(1, 6)])
    assert jumps(inner) == pytest.approx([0.5])
    assert jumps(three.segment(0)) == ()


def test_a_segment_is_the_tree_as_it_is_there(getkey):
    inner = [make_field(getkey(), 2) for _ in range(3)]
    tree = Own([jnode.PiecewiseField(inner)])
    times = (0.0, *jumps(tree), 1.0)
    y = jr.normal(getkey(), (5,))
    at = jax.jit(lambda k: segment(tree, k, times)(0.0, y, None))
    moving, still = segments(tree, range(4), times)
    assert len(times) == 5
    for k, (a, b) in enumerate(itertools.pairwise(times)):
        expected = tree((a + b) / 2, y, None)
        np.testing.assert_allclose(at(k), expected, atol=1e-6)
        one = eqx.combine(jax.tree.map(lambda x: x[k], moving), still)
        np.testing.assert_allclose(one(0.0, y, None), expected, atol=1e-6)
    back = segment(tree, 0, times[::-1])
    np.testing.assert_allclose(back(0.0, y, None), at(3), atol=1e-6)


def whole_and_parts(getkey, kind):
    """A field that jumps, and what it is on each segment."""
    field = make_field(getkey(), 4, activation="tanh")
    change = {
        "multiple": lambda f: 2.0 * f,
        "sum": lambda f: f + Decay(0.5),
        "own": lambda f: Own([f]),
    }[kind]
    return change(field), [change(field.segment(k)) for k in range(4)]


def follow(parts, y, ends):
    fine = jnode.Solver("dopri8", steps=8)
    for part, (a, b) in zip(parts, itertools.pairwise(ends), strict=True):
        y = jnode.solve(part, y, fine, t0=a, t1=b).y
    return y


QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
SOLVERS = [
    jnode.Solver("tsit5", steps=8),
    jnode.Solver("dopri5", rtol=1e-6, atol=1e-6),
    jnode.Solver("tsit5", steps=8, adjoint="checkpointed"),
]


@pytest.mark.parametrize("kind", slow_but(["multiple", "sum", "own"], "own"))
@pytest.mark.parametrize(
    "solver", slow_but(SOLVERS, *SOLVERS[:2]), ids=["fixed", "adaptive", "checkpointed"]
)
def test_no_step_crosses_a_hidden_jump(getkey, kind, solver):
    field, parts = whole_and_parts(getkey, kind)
    y0 = jr.normal(getkey(), (5,))
    best = follow(parts, y0, QUARTERS)
    # Steps over the jumps err by 1e-2 and more.
    near: dict[str, Any] = dict(atol=1e-4, rtol=0)
    np.testing.assert_allclose(jnode.solve(field, y0, solver).y, best, **near)
    batch = solve_batch(field, jnp.stack([y0, y0]), solver)
    np.testing.assert_allclose(batch.y[1], best, **near)
    start = jnode.solve(field, best, solver, t0=1.0, t1=0.0).y
    np.testing.assert_allclose(start, y0, atol=3e-4)
    assert jnp.abs(trajectory(field, y0, solver)[1][-1] - best).max() < 1e-4


@pytest.mark.parametrize(
    "how",
    [
        dict(steps=8),
        dict(stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-6)),
    ],
    ids=["steps", "controller"],
)
@pytest.mark.parametrize("count", slow_but([3, 4], 3))
def test_diffrax_stops_at_the_jumps_too(getkey, how, count):
    field, y0 = (
        make_field(getkey(), count, activation="tanh"),
        jr.normal(getkey(), (5,)),
    )
    parts, ends = [field.segment(k) for k in range(count)], np.linspace(0, 1, count + 1)
    ends = ends.tolist()
    how = {**how, "steps": 2 * count} if "steps" in how else how
    saveat = diffrax.SaveAt(ts=jnp.asarray(ends[1:]))
    solution = jnode.solve(field, y0, diffrax.Tsit5(), saveat=saveat, **how)
    for k in range(count):
        best = follow(parts[: k + 1], y0, ends[: k + 2])
        np.testing.assert_allclose(solution.ys[k], best, atol=5e-4)
    np.testing.assert_allclose(solution.y, best, atol=1e-4)
    # And so does a user of Diffrax alone, whatever the number of segments.
    control = diffrax.PIDController(rtol=1e-6, atol=1e-6)
    clipped = diffrax.ClipStepSizeController(control, jump_ts=jnp.asarray(ends[1:-1]))
    term, step = diffrax.ODETerm(field), 0.1
    theirs: Any = diffrax.diffeqsolve(
        term, diffrax.Tsit5(), 0.0, 1.0, step, y0, stepsize_controller=clipped
    )
    np.testing.assert_allclose(theirs.ys[-1], best, atol=1e-4)


def test_parts_of_the_interval_and_beyond(getkey):
    field, y0 = make_field(getkey(), 4, activation="tanh"), jr.normal(getkey(), (5,))
    parts = [field.segment(k) for k in (0, 0, 1, 2)]
    ends = (-0.25, 0.0, 0.25, 0.5, 0.6)
    best = follow(parts, y0, ends)
    # Steps of 0.25, 0.25, 0.25 and 0.1: segments of one, one, one and another length.
    grid = tuple((t + 0.25) / 0.85 for t in ends)
    span: dict[str, Any] = dict(t0=-0.25, t1=0.6)
    ours = jnode.solve(field, y0, jnode.Solver("dopri8", grid=grid), **span)
    np.testing.assert_allclose(ours.y, best, atol=1e-5)
    assert ours.stats["num_steps"] == 4
    adaptive = jnode.solve(field, y0, jnode.Solver("dopri8", rtol=1e-6), **span)
    np.testing.assert_allclose(adaptive.y, best, atol=1e-4)
    ts = dict(ts=ends, saveat=diffrax.SaveAt(t1=True))
    for extra in (dict(ts=ends), ts):
        theirs = jnode.solve(field, y0, diffrax.Dopri8(), **extra, **span)
        np.testing.assert_allclose(theirs.y, best, atol=1e-5)


@pytest.mark.slow
def test_derivatives_with_respect_to_the_times(getkey):
    field, y0 = make_field(getkey(), 4, activation="tanh"), jr.normal(getkey(), (5,))
    solver = jnode.Solver("tsit5", steps=8)
    run = lambda t0, t1: jnode.solve(field, y0, solver, t0=t0, t1=t1).y
    end = run(0.0, 1.0)
    np.testing.assert_allclose(
        jax.jacfwd(lambda t: run(0.0, t))(1.0), field(1.0, end), atol=1e-4
    )
    expected = -jax.jvp(
        lambda y: jnode.solve(field, y, solver).y, (y0,), (field(0, y0),)
    )[1]
    np.testing.assert_allclose(
        jax.jacrev(lambda t: run(t, 1.0))(0.0), expected, atol=1e-4
    )
    # Traced times, in both directions.
    traced = jax.jit(run)
    np.testing.assert_allclose(traced(0.0, 1.0), end, atol=1e-6)
    np.testing.assert_allclose(traced(1.0, 0.0), run(1.0, 0.0), atol=1e-6)
    with pytest.raises(Exception, match="all jumps of the field"):
        traced(0.3, 1.0).block_until_ready()
    with pytest.raises(ValueError, match="multiple of the field's 4 segments"):
        jax.jit(lambda t: jnode.solve(field, y0, jnode.Solver("rk4", steps=6), t1=t).y)(
            1.0
        )


def test_frozen_steps_run_backwards_too(getkey):
    field, y0 = make_field(getkey(), 2), jr.normal(getkey(), (5,))
    adaptive = jnode.Solver("bosh3", rtol=1e-4)
    taken = jnode.solve(field, y0, adaptive, t0=1.0, t1=0.0).schedule
    frozen = adaptive.freeze(taken)
    ours, theirs = (
        jnode.solve(field, y0, s, t0=1.0, t1=0.0) for s in (frozen, adaptive)
    )
    assert jnp.abs(ours.y - theirs.y).max() < 1e-5
    assert ours.stats["num_steps"] == theirs.stats["num_accepted_steps"] > 2


def test_constant_steps_of_diffrax_do_not_know_jumps(getkey):
    with pytest.raises(ValueError, match="steps or ts must be given"):
        jnode.solve(make_field(getkey()), jnp.ones(5), diffrax.Tsit5(), dt0=0.1)
