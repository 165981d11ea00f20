"""Solvers: their order, their statistics, their gradients, their errors."""

import dataclasses

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode.solvers import SOLVERS, tableau, trajectory

ORDERS = {
    "euler": 1,
    "heun": 2,
    "midpoint": 2,
    "bosh3": 3,
    "rk4": 4,
    "tsit5": 5,
    "dopri5": 5,
    "dopri8": 8,
}
FIXED = [jnode.Solver(name, steps=2) for name in SOLVERS]
ADAPTIVE = [jnode.Solver(n) for n in ("heun", "bosh3", "tsit5", "dopri5", "dopri8")]


def field_and_state(key, dtype=jnp.float32):
    keys = jr.split(key, 2)
    field = jnode.OrthoField((6,), activation="tanh", lipschitz=2.0, key=keys[0])
    field = jax.tree.map(lambda w: w.astype(dtype), field)
    return field, jr.normal(keys[1], (6,), dtype)


@pytest.mark.parametrize("name", SOLVERS)
def test_order(x64, name):
    field, y0 = field_and_state(jr.key(0), jnp.float64)
    field = field.bake()
    best = jnode.solve(field, y0, jnode.Solver("dopri8", steps=64)).y
    steps = (1, 2) if name == "dopri8" else (8, 16)
    errors = [
        jnp.linalg.norm(jnode.solve(field, y0, jnode.Solver(name, steps=n)).y - best)
        for n in steps
    ]
    # The high orders are not yet in their asymptotic regime, where they look better.
    assert -0.4 < np.log2(errors[0] / errors[1]) - ORDERS[name] < 1


@pytest.mark.parametrize("solver", FIXED, ids=str)
def test_fixed_steps_agree_with_diffrax(getkey, solver):
    field, y0 = field_and_state(getkey())
    ours = jnode.solve(field, y0, solver)
    theirs = jnode.solve(field, y0, dataclasses.replace(solver, adjoint="checkpointed"))
    assert jnp.abs(ours.y - theirs.y).max() < 1e-5
    assert ours.stats["num_steps"] == theirs.stats["num_steps"] == 2
    assert ours.stats["num_rejected_steps"] == 0
    assert ours.stats["nfe"] == 2 * len(tableau(solver.name)[1])


@pytest.mark.parametrize("solver", ADAPTIVE, ids=str)
def test_nfe_counts_every_evaluation(getkey, solver):
    field, y0 = field_and_state(getkey())
    calls = []

    class Counting(jnode.AbstractVectorField):
        field: jnode.AbstractVectorField

        def __call__(self, t, y, args=None):
            jax.debug.callback(lambda: calls.append(1))
            return self.field(t, y, args)

        def lipschitz(self):
            return self.field.lipschitz()

        def log_norm(self):
            return self.field.log_norm()

        def cocoercivity(self):
            return self.field.cocoercivity()

        def bake(self):
            return Counting(self.field.bake())

    solution = jnode.solve(Counting(field), y0, solver)
    jax.block_until_ready(solution.y)
    jax.effects_barrier()
    stats = solution.stats
    # Diffrax evaluates the last stage of the very first step twice in some methods.
    assert abs(len(calls) - int(stats["nfe"])) <= 2
    total = stats["num_accepted_steps"] + stats["num_rejected_steps"]
    assert stats["num_steps"] == total > 0


@pytest.mark.parametrize("adjoint", ["direct", "checkpointed", "backsolve"])
@pytest.mark.parametrize("steps", [None, 8])
def test_gradients(x64, adjoint, steps):
    field, y0 = field_and_state(jr.key(0), jnp.float64)
    tolerance = dict(rtol=1e-8, atol=1e-8) if steps is None else {}
    solver = jnode.Solver("dopri5", steps=steps, adjoint=adjoint, **tolerance)
    f = jax.jit(lambda y: jnp.sum(jnode.solve(field, y, solver).y ** 2))
    direction = jr.normal(jr.key(1), y0.shape)
    slope = (f(y0 + 1e-6 * direction) - f(y0 - 1e-6 * direction)) / 2e-6
    exact = 1e-3 if adjoint == "backsolve" else 1e-6
    ours = float(jnp.sum(jax.jit(jax.grad(f))(y0) * direction))
    assert ours == pytest.approx(float(slope), rel=exact)


def test_batch_mates_do_not_matter(getkey):
    field, y0 = field_and_state(getkey())
    solver = jnode.Solver("dopri5", rtol=1e-2)
    batch = jnp.stack([y0, 100 * y0, jnp.zeros_like(y0)])
    run = jax.jit(jax.vmap(lambda y: jnode.solve(field, y, solver).y))
    together, alone = run(batch), run(jnp.stack([y0, y0, y0]))
    np.testing.assert_array_equal(together[0], alone[0])


def test_trajectory_ends_where_solve_ends(getkey):
    field, y0 = field_and_state(getkey())
    for solver in (jnode.Solver("rk4", steps=3), jnode.Solver("tsit5")):
        times, states = trajectory(field, y0, solver)
        assert len(times) == len(states)
        assert (times[0], times[-1]) == (0.0, 1.0)
        assert jnp.abs(states[0] - y0).max() < 1e-6
        assert jnp.abs(states[-1] - jnode.solve(field, y0, solver).y).max() < 1e-4


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("solver", "value", "message"),
    [
        (jnode.Solver("dopri5", rtol=1e-6, atol=1e-6, max_steps=2), 1.0, "max_steps=2"),
        (jnode.Solver("rk4", steps=2), float("nan"), "ceased to be finite"),
        (jnode.Solver("dopri5"), float("nan"), "max_steps|finite"),
    ],
    ids=["max_steps", "nan fixed", "nan adaptive"],
)
def test_failed_solves_raise(getkey, solver, value, message, jit):
    field, y0 = field_and_state(getkey())
    f = lambda y: jnode.solve(field, y, solver).y
    with pytest.raises(Exception, match=message):
        jax.block_until_ready((eqx.filter_jit(f) if jit else f)(value * y0))


def test_failed_solves_are_counted_where_asked(getkey):
    field, y0 = field_and_state(getkey())
    solver = jnode.Solver("dopri5", rtol=1e-6, atol=1e-6, max_steps=2)
    solve = eqx.filter_jit(lambda y, s: jnode.solve(field, y, s, throw=False))
    short = solve(y0, solver)
    assert (short.stats["num_failed"], short.stats["num_steps"]) == (1, 2)
    assert jnp.isfinite(short.y).all()
    enough = solve(y0, dataclasses.replace(solver, max_steps=256))
    assert enough.stats["num_failed"] == 0
    bad = solve(jnp.nan * y0, jnode.Solver("rk4", steps=2))
    assert bad.stats["num_failed"] == 0 and jnp.isnan(bad.y).any()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(name="rk5"), "euler, heun, midpoint, rk4"),
        (dict(name="euler"), "cannot be adaptive"),
        (dict(name="euler", steps=3, rtol=1e-3), "fixed steps, which take no rtol"),
        (dict(name="rk4", steps=0), "steps must be"),
        (dict(name="rk4", steps=-2), "steps must be"),
        (dict(name="dopri5", rtol=0.0), "rtol must be positive"),
        (dict(name="dopri5", atol=-1.0), "atol must be positive"),
        (dict(name="dopri5", max_steps=0), "max_steps must be"),
        (dict(name="dopri5", adjoint="magic"), "direct, checkpointed"),
        (dict(name="heun", grid=(0.0, 0.5, 0.4, 1.0)), "increase from 0 to 1"),
        (dict(name="heun", grid=(0.0, 0.9)), "increase from 0 to 1"),
        (dict(name="heun", grid=(0.0, 0.5, 1.0), steps=3), "left out beside a grid"),
        (dict(name="heun", grid=(0.0, 1.0), rtol=1e-3), "take no rtol"),
        (dict(name="heun", grid=(0.0, 1.0), adjoint="backsolve"), "equal steps"),
    ],
)
def test_bad_solvers(kwargs, message):
    with pytest.raises(ValueError, match=message):
        jnode.Solver(**kwargs)


def test_solve_wants_a_solver(getkey):
    field, y0 = field_and_state(getkey())
    with pytest.raises(TypeError, match="solver must be a jnode.Solver or a solver of"):
        jnode.solve(field, y0, diffrax.Tsit5)
