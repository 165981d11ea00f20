"""Adaptive steps from a ladder of halves: times, decisions, gradients, errors."""

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode.solvers import LadderController, Solver, solve_batch
from tests.helpers import slow_but

METHODS = {"heun": diffrax.Heun, "bosh3": diffrax.Bosh3, "dopri5": diffrax.Dopri5}


def problem(getkey, size=6):
    field = jnode.OrthoField((size,), lipschitz=3.0, key=getkey())
    return field, 2 * jr.normal(getkey(), (7, size))


def check_grid(times, count):
    """Each step is a first step halved some times, and starts at its multiple."""
    assert times[0] == 0 and times[-1] == 1
    lengths = np.diff(times)
    halvings = np.log2(1 / (count * lengths))
    np.testing.assert_allclose(halvings, np.round(halvings), atol=1e-4)
    places = times[:-1] / lengths
    np.testing.assert_allclose(places, np.round(places), atol=1e-3)
    # A step is at most twice as long as the one before.
    assert np.all(lengths[1:] <= 2.001 * lengths[:-1])


@pytest.mark.parametrize("name", slow_but(METHODS, "heun"))
@pytest.mark.parametrize("count", slow_but([1, 3], 3))
def test_the_same_grid_by_every_way(getkey, name, count):
    field, states = problem(getkey)
    tol = 1e-2
    solver = Solver(name, rtol=tol, atol=tol, controller="ladder", first_step=1 / count)
    ladder = LadderController(tol, tol, 1 / count)
    together = solve_batch(field, states, solver)
    grids = set()
    for i, y in enumerate(states[:4]):
        alone = jnode.solve(field, y, solver)
        times = np.asarray(alone.schedule.times)
        check_grid(times, count)
        grids.add(tuple(times))
        theirs = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            METHODS[name](),
            0.0,
            1.0,
            None,
            y,
            stepsize_controller=ladder,
            saveat=diffrax.SaveAt(steps=True),
        )
        assert theirs.ts is not None and theirs.ys is not None
        n = int(theirs.stats["num_accepted_steps"])
        np.testing.assert_array_equal(theirs.ts[:n], times[1:].astype(np.float32))
        np.testing.assert_allclose(theirs.ys[n - 1], alone.y, atol=1e-5)
        np.testing.assert_allclose(together.y[i], alone.y, atol=1e-5)
        for key in ("num_steps", "num_accepted_steps", "nfe"):
            assert together.stats[key][i] == alone.stats[key]
        given = jnode.solve(field, y, METHODS[name](), stepsize_controller=ladder)
        np.testing.assert_allclose(given.y, alone.y, atol=1e-5)
        if name == "bosh3":
            fixed = jnode.solve(field, y, solver.freeze(alone.schedule))
            np.testing.assert_allclose(fixed.y, alone.y, atol=1e-5)
    if name == "heun":
        assert len(grids) > 1  # the states do take different steps


def test_a_smaller_tolerance_is_closer(getkey):
    field, states = problem(getkey)
    best = jax.vmap(lambda y: jnode.solve(field, y, Solver("dopri5", steps=64)).y)
    errors = []
    for tolerance in (1e-1, 1e-2, 1e-3):
        solver = Solver("bosh3", rtol=tolerance, atol=tolerance, controller="ladder")
        ends = solve_batch(field, states, solver).y
        errors.append(float(jnp.max(jnp.abs(ends - best(states)))))
    assert errors[2] < errors[1] < errors[0] and errors[2] < 0.05 * errors[0]


def test_halving_never_grows(getkey):
    field, states = problem(getkey)
    solver = Solver("heun", rtol=1e-2, atol=1e-2, controller="halving")
    longer = []
    for y in states:
        times = np.asarray(jnode.solve(field, y, solver).schedule.times)
        assert np.all(np.diff(np.diff(times)) <= 0)
        grows = Solver("heun", rtol=1e-2, atol=1e-2, controller="ladder")
        free = np.asarray(jnode.solve(field, y, grows).schedule.times)
        longer.append(np.any(np.diff(np.diff(free)) > 0))
    assert any(longer)


def test_backwards_and_between_jumps(getkey):
    key, n = getkey(), 4
    segments = [jnode.OrthoField((n,), lipschitz=2.0, key=k) for k in jr.split(key, 2)]
    field = jnode.PiecewiseField(segments, t0=0.0, t1=1.0)
    solver = Solver("bosh3", rtol=1e-3, atol=1e-3, controller="ladder")
    y0 = 2 * jr.normal(getkey(), (3, n))
    ends = solve_batch(field, y0, solver)
    alone = jnode.solve(field, y0[0], solver)
    np.testing.assert_allclose(ends.y[0], alone.y, atol=1e-5)
    assert 0.5 in np.asarray(alone.schedule.times)
    back = solve_batch(field, ends.y, solver, t0=1.0, t1=0.0)
    np.testing.assert_allclose(back.y, y0, atol=0.02)
    with pytest.raises(ValueError, match="saveat and event must be left out"):
        jnode.solve(field, y0[0], solver, saveat=diffrax.SaveAt(ts=[0.7]))


@pytest.mark.slow
def test_gradients_are_those_of_the_steps_taken(getkey):
    field, states = problem(getkey, 4)
    field, y0 = field.bake(), states[0]
    solver = Solver("bosh3", rtol=1e-2, atol=1e-2, controller="ladder")
    frozen = solver.freeze(jnode.solve(field, y0, solver).schedule)

    def end(y, t1, solver, whole):
        if whole:
            return jnp.sum(solve_batch(field, y[None], solver, t1=t1).y ** 2)
        return jnp.sum(jnode.solve(field, y, solver, t1=t1).y ** 2)

    for whole in (False, True):
        ours = jax.grad(end, argnums=(0, 1))(y0, 1.0, solver, whole)
        held = jax.grad(end)(y0, 1.0, frozen, False)
        np.testing.assert_allclose(ours[0], held, rtol=1e-4, atol=1e-5)
        y1 = jnode.solve(field, y0, solver).y
        np.testing.assert_allclose(ours[1], 2 * y1 @ field(1.0, y1), rtol=0.1)


def test_what_is_refused(getkey):
    field, states = problem(getkey, 4)
    for share in (0.3, 0.0, 2.0, 1 / 257):
        with pytest.raises(ValueError, match="first_step must be a share 1/m"):
            LadderController(1e-2, 1e-2, share)
    with pytest.raises(ValueError, match="first_step must be left out unless"):
        Solver("heun", first_step=0.5)
    with pytest.raises(ValueError, match="controller must be left out beside fixed"):
        Solver("heun", steps=2, controller="ladder")
    with pytest.raises(ValueError, match="controller must be one of"):
        Solver("heun", controller="stairs")
    ladder, y0 = LadderController(1e-3, 1e-3), states[0]
    with pytest.raises(ValueError, match="dt0 must be None"):
        jnode.solve(field, y0, diffrax.Heun(), stepsize_controller=ladder, dt0=0.1)
    with pytest.raises(ValueError, match="solver must estimate its error"):
        jnode.solve(field, y0, diffrax.Euler(), stepsize_controller=ladder)
    few = Solver("heun", rtol=1e-3, atol=1e-3, controller="ladder", max_steps=3)
    with pytest.raises(Exception, match="did not reach the end"):
        jnode.solve(field, y0, few)


def test_tolerances_too_small_for_the_ladder(getkey):
    field, states = problem(getkey, 4)
    ladder = LadderController(1e-14, 1e-14)
    given = dict(stepsize_controller=ladder, throw=False)
    found = jnode.solve(field, states[0], diffrax.Heun(), **given)  # pyright: ignore[reportArgumentType]  # of several types
    assert found.stats["num_failed"] == 1
    assert found.result == diffrax.RESULTS.dt_min_reached


def test_it_is_a_value(getkey):
    solver = Solver("heun", rtol=1e-2, atol=1e-2, controller="ladder", first_step=0.5)
    assert str(solver) == "heun(rtol=0.01, atol=0.01, ladder from 0.5)"
    assert solver.part(0.0, 0.5) == solver and solver.adaptive and solver.ladder
    again = jnode.solvers.join([solver, solver], [0, 0.5, 1])
    assert again == solver
    other = Solver("heun", rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="must differ in nothing but their steps"):
        jnode.solvers.join([solver, other], [0, 0.5, 1])
