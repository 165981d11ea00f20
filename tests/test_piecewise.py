"""Unequal steps, frozen steps, and fields whose weights change with time."""

import dataclasses
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode import certify
from jnode.solvers import freeze, trajectory

GRID = (0.0, 0.1, 0.5, 1.0)


def pieces(key, count=3, kind=jnode.OrthoField, **options):
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


@pytest.mark.parametrize(
    "solver",
    [
        jnode.Solver("rk4", steps=6),
        jnode.Solver("heun", grid=(0, 0.2, 1 / 3, 2 / 3, 0.7, 1)),
        jnode.Solver("tsit5"),
        jnode.Solver("euler", steps=3, adjoint="checkpointed"),
    ],
    ids=str,
)
def test_pieces_one_after_another(getkey, solver):
    field = pieces(getkey())
    y = y0 = jr.normal(getkey(), (5,))
    nfe = 0
    for k in range(3):
        part = solver.piece(k, 3)
        solution = jnode.solve(field.piece(k), y, part, t0=k / 3, t1=(k + 1) / 3)
        y, nfe = solution.y, nfe + int(solution.stats["nfe"])
    whole = jax.jit(lambda y: jnode.solve(field, y, solver))(y0)
    assert jnp.abs(whole.y - y).max() < 1e-5
    assert whole.stats["nfe"] == nfe
    times, states = trajectory(field, y0, solver)
    assert (np.diff(times) > 0).all() and len(times) == len(states)
    assert jnp.abs(states[-1] - y).max() < 1e-3
    # The weights of every piece get a gradient.
    grad = jax.grad(lambda f: jnp.sum(jnode.solve(f, y0, solver).y))(field)
    assert (jnp.abs(grad.pieces.first_bias).max(axis=1) > 0).all()


def test_pieces_rule_in_their_time(getkey):
    field, y = pieces(getkey()), jr.normal(getkey(), (5,))
    for t, k in ((-1.0, 0), (0.0, 0), (0.32, 0), (0.34, 1), (0.99, 2), (1.0, 2)):
        assert jnp.abs(field(t, y) - field.piece(k)(t, y)).max() < 1e-6
    assert field.times() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_certificate_is_the_product_over_pieces_and_steps(getkey):
    field = pieces(getkey())
    single = jnode.OrthoField((5,), lipschitz=2.0, key=getkey())
    near = lambda x: pytest.approx(float(x), rel=1e-3)
    euler = jnode.Solver("euler", steps=3)
    assert float(certify.amplification(field, euler)) == near((1 + 2 / 3) ** 3)
    grid = jnode.Solver("euler", grid=GRID)
    product = (1 + 0.2) * (1 + 0.8) * (1 + 1.0)
    assert float(certify.amplification(single, grid)) == near(product)
    times = jnp.asarray([0.0, 0.2, 1.0])
    assert certify.gronwall(field, times).tolist() == near_list(np.exp([0, 0.4, 2.0]))
    # A time-dependent L(t): pieces of different constants.
    mixed = jnode.PiecewiseField(
        [
            jnode.OrthoField((5,), lipschitz=3.0, learnable=True, key=getkey()),
            jnode.OrthoField((5,), lipschitz=3.0, learnable=True, key=getkey()),
        ]
    )
    raw = jnp.asarray([-20.0, 20.0])  # constants of all but 0 and 3
    mixed = eqx.tree_at(lambda f: f.pieces.scale.raw, mixed, raw)
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
    field = pieces(getkey(), count)
    field = field if count > 1 else field.piece(0)
    y0, other = jr.normal(getkey(), (2, 5))
    frozen = freeze(field, y0, adaptive)
    solve = eqx.filter_jit(jnode.solve)
    ours, theirs = (solve(field, y0, s) for s in (frozen, adaptive))
    assert jnp.abs(ours.y - theirs.y).max() < 1e-5
    assert ours.stats["num_steps"] == theirs.stats["num_accepted_steps"]
    assert jnp.isfinite(certify.amplification(field, frozen))
    # From elsewhere the same steps, and what the tolerance suggests.
    near = solve(field, other, frozen).y
    assert jnp.abs(near - solve(field, other, adaptive).y).max() < 0.1
    with pytest.raises(ValueError, match="must be adaptive"):
        freeze(field, y0, frozen)


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
        call(pieces(getkey()), jnp.ones(5))
