"""Solvers: their order, their statistics, their gradients, their errors."""

import dataclasses
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode.solvers import SOLVERS, tableau, trajectory
from tests.helpers import slow_but

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


@pytest.mark.parametrize("name", slow_but(SOLVERS, "rk4"))
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


@pytest.mark.parametrize("solver", slow_but(FIXED, FIXED[1]), ids=str)
def test_fixed_steps_agree_with_diffrax(getkey, solver):
    field, y0 = field_and_state(getkey())
    ours = jnode.solve(field, y0, solver)
    theirs = jnode.solve(field, y0, dataclasses.replace(solver, adjoint="checkpointed"))
    assert jnp.abs(ours.y - theirs.y).max() < 1e-5
    assert ours.stats["num_steps"] == theirs.stats["num_steps"] == 2
    assert ours.stats["num_rejected_steps"] == 0
    assert ours.stats["nfe"] == 2 * len(tableau(solver.name)[1])


@pytest.mark.parametrize("solver", slow_but(ADAPTIVE, ADAPTIVE[1]), ids=str)
def test_nfe_counts_every_evaluation(getkey, solver):
    field, y0 = field_and_state(getkey())
    calls = []

    def counting(t, y, args):
        jax.debug.callback(lambda: calls.append(1))
        return args(t, y)

    solution = jnode.solve(counting, y0, solver, args=field)
    jax.block_until_ready(solution.y)
    jax.effects_barrier()
    stats = solution.stats
    # Diffrax evaluates the last stage of the very first step twice in some methods.
    assert abs(len(calls) - int(stats["nfe"])) <= 2
    total = stats["num_accepted_steps"] + stats["num_rejected_steps"]
    assert stats["num_steps"] == total > 0


@pytest.mark.parametrize(
    "adjoint", slow_but(["direct", "checkpointed", "backsolve"], "checkpointed")
)
@pytest.mark.parametrize("steps", slow_but([None, 8], 8))
def test_gradients(x64, adjoint, steps):
    field, y0 = field_and_state(jr.key(0), jnp.float64)
    tolerance: dict[str, Any] = dict(rtol=1e-8, atol=1e-8) if steps is None else {}
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


@pytest.mark.parametrize("jit", slow_but([False, True], False))
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
    wrong: Any = diffrax.Tsit5  # the class
    with pytest.raises(TypeError, match="solver"):
        jnode.solve(field, y0, wrong)


def decay(t, y, args):
    """A plain function as a field."""
    return -y if args is None else -args * y


WAYS = {
    "fixed": jnode.Solver("rk4", steps=32),
    "adaptive": jnode.Solver("dopri5", rtol=1e-6, atol=1e-6),
    "checkpointed": jnode.Solver("heun", steps=256, adjoint="checkpointed"),
}


@pytest.mark.parametrize("way", slow_but(WAYS, "adaptive"))
@pytest.mark.parametrize("traced", slow_but([False, True], True))
def test_time_runs_backwards(getkey, way, traced):
    field = jnode.OrthoField((4,), activation="tanh", time=True, key=getkey())
    field = eqx.tree_at(lambda f: f.time_coefficients[0], field, jnp.ones(4))
    y0, solver = jr.normal(getkey(), (4,)), WAYS[way]

    def run(t0, t1, y):
        return jnode.solve(field, y, solver, t0=t0, t1=t1).y

    run = jax.jit(run) if traced else run
    there = run(0.0, 1.0, y0)
    assert jnp.abs(there - y0).max() > 0.3
    np.testing.assert_allclose(run(1.0, 0.0, there), y0, atol=2e-5)
    # Of no time nothing comes, and no NaN.
    np.testing.assert_array_equal(run(0.5, 0.5, y0), y0)
    grad = jax.grad(lambda y: jnp.sum(run(0.5, 0.5, y)))(y0)
    np.testing.assert_array_equal(grad, jnp.ones(4))


@pytest.mark.slow
def test_trajectories_run_backwards_and_stop_where_asked(getkey):
    field, y0 = field_and_state(getkey())
    for solver in (jnode.Solver("rk4", steps=8), jnode.Solver("dopri5", rtol=1e-5)):
        times, states = trajectory(field, y0, solver, t0=1.0, t1=0.0)
        assert (np.diff(times) < 0).all() and times[0] == 1 and times[-1] == 0
        end = jnode.solve(field, y0, solver, t0=1.0, t1=0.0).y
        np.testing.assert_allclose(states[-1], end, atol=1e-3)
        _, at = trajectory(field, y0, solver, t0=1.0, t1=0.0, ts=[0.75, 0.0])
        half = jnode.solve(field, y0, solver, t0=1.0, t1=0.75).y
        np.testing.assert_allclose(at[0], half, atol=1e-3)
        with pytest.raises(ValueError, match="ts must increase from t0 = 0"):
            trajectory(field, y0, solver, ts=[0.75, 0.0])
        with pytest.raises(ValueError, match="ts must increase from t0 = 0"):
            trajectory(field, y0, solver, ts=[0.75, 2.0])
    traced = jax.jit(lambda t: trajectory(field, y0, solver, t1=t))(0.3)
    assert traced[0][-1] == jnp.float32(0.3)


STATES = {
    "integers": jnp.arange(4),
    "booleans": jnp.asarray([True, False, True, True]),
    "numpy": np.arange(4.0),
    "list": [0, 1.5, 2, 3],
}


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("way", slow_but(WAYS, "fixed"))
def test_states_are_promoted_as_in_diffrax(getkey, kind, way):
    field = jnode.OrthoField((4,), activation="tanh", key=getkey())
    y0 = STATES[kind]
    solver, same = WAYS[way], jnp.asarray(y0, jnp.float32)
    expected = jnode.solve(field, same, solver).y
    found = jnode.solve(field, y0, solver).y
    assert found.dtype == jnp.float32 and jnp.abs(expected - same).max() > 1e-2
    np.testing.assert_array_equal(found, expected)
    batch = [y0] if isinstance(y0, list) else y0[None]
    np.testing.assert_allclose(
        jnode.solvers.solve_batch(field, batch, solver).y[0], expected, atol=1e-5
    )


def test_numbers_and_half_precision():
    half = jnp.ones(2, jnp.bfloat16)
    term, euler = diffrax.ODETerm(decay), diffrax.Euler()
    theirs: Any = diffrax.diffeqsolve(term, euler, 0.0, 1.0, 0.25, half)
    ours = jnode.solve(decay, half, euler, steps=4)
    assert ours.y.dtype == theirs.ys.dtype
    np.testing.assert_allclose(ours.y, theirs.ys[-1], rtol=1e-6)
    for y0 in (1, 1.0, True):
        assert jnode.solve(decay, y0, euler, steps=4).y == 0.75**4


@pytest.mark.parametrize("way", slow_but(WAYS, "fixed"))
def test_double_and_single_precision_meet(x64, standard_promotion, way):
    single, y0 = field_and_state(jr.key(0), jnp.float32)
    double = jax.tree.map(lambda w: w.astype(jnp.float64), single)
    solver = WAYS[way]
    best = jnode.solve(double, y0.astype(jnp.float64), solver).y
    jumping = jnode.PiecewiseField([double, double])
    for field in (double, single, jumping):
        near: dict[str, Any] = dict(atol=1e-5 if field is jumping else 1e-6)
        for state in (y0, y0.astype(jnp.float64)):
            found = jnode.solve(field, state, solver).y
            assert found.dtype == jnp.float64
            np.testing.assert_allclose(found, best, **near)
            batch = jnode.solvers.solve_batch(field, state[None], solver).y
            np.testing.assert_allclose(batch[0], best, **near)
    # Times in single precision keep a state so, but for weights in double.
    times = dict(t0=jnp.float32(0), t1=jnp.float32(1))
    assert jnode.solve(single, y0, solver, **times).y.dtype == jnp.float32
    assert jnode.solve(double, y0, solver, **times).y.dtype == jnp.float64


@pytest.mark.parametrize("method", slow_but(["Ralston", "Tsit5"], "Ralston"))
def test_diffrax_solvers_take_the_fast_path(getkey, method):
    method = getattr(diffrax, method)()
    y0, args = jr.normal(getkey(), (3, 2)), jnp.asarray(2.0)
    ours = jnode.solve(decay, y0, method, steps=4, args=args)
    theirs: Any = diffrax.diffeqsolve(
        diffrax.ODETerm(decay), method, 0.0, 1.0, 0.25, y0, args
    )
    np.testing.assert_allclose(ours.y, theirs.ys[-1], rtol=1e-6)
    assert ours.inner is None and ours.stats["nfe"] == 4 * len(tableau(method)[1])
    # The same names as Diffrax's.
    np.testing.assert_array_equal(ours.ts, theirs.ts)
    assert ours.ys.shape == theirs.ys.shape and ours.result == theirs.result
    assert (ours.t0, ours.t1, ours.event_mask, ours.interpolation) == (0, 1, None, None)
    with pytest.raises(ValueError, match="dense=True"):
        ours.evaluate(0.5)
    # And through Diffrax the same numbers.
    dense = jnode.solve(
        decay, y0, method, steps=4, args=args, saveat=diffrax.SaveAt(dense=True)
    )
    np.testing.assert_allclose(dense.y, ours.y, rtol=1e-5)
    np.testing.assert_allclose(dense.evaluate(0.5), y0 * np.exp(-1), rtol=0.07)
    assert dense.ys is None


def test_results_of_a_batch():
    few = jnode.Solver("heun", rtol=1e-6, atol=1e-6, max_steps=16)
    states = jnp.asarray([[0.0], [1e3]])
    found = jnode.solvers.solve_batch(decay, states, few, throw=False)
    assert found.stats["num_failed"].tolist() == [0, 1]
    expected = (diffrax.RESULTS.successful, diffrax.RESULTS.max_steps_reached)
    for k, result in enumerate(expected):
        assert jax.tree.map(lambda x: x[k], found.result) == result
    assert found.ts.shape == (2, 1) and found.ys.shape == (2, 1, 1)


NO_TABLEAU = [
    "ralston",
    diffrax.Kvaerno3(),
    diffrax.ImplicitEuler(),
    diffrax.SemiImplicitEuler(),
    diffrax.LeapfrogMidpoint(),
    diffrax.ShARK(),
    diffrax.HalfSolver(diffrax.Euler()),
    diffrax.Kvaerno3.tableau,
    3,
]


@pytest.mark.parametrize("method", NO_TABLEAU, ids=lambda x: type(x).__name__)
def test_tableaus_of_what_has_none(method):
    name = method if isinstance(method, str) else type(method).__name__
    with pytest.raises((TypeError, ValueError), match=name):
        tableau(method)


def test_tableaus():
    for method in ("heun", diffrax.Heun(), diffrax.Heun.tableau):
        a, b, c = tableau(method)
        assert a.tolist() == [[0, 0], [1, 0]] and b.tolist() == [0.5, 0.5]
        assert c.tolist() == [0, 1]
    assert [x.tolist() for x in tableau(diffrax.Euler())] == [[[0]], [1], [0]]


def test_any_state_through_diffrax():
    spring = lambda t, y, k: {"x": y["v"], "v": -k * y["x"]}
    y0 = {"x": jnp.ones(()), "v": np.zeros(())}
    exact = {"x": np.cos(1.0), "v": -np.sin(1.0)}
    for solver in (jnode.Solver("rk4", steps=16), jnode.Solver("tsit5", rtol=1e-5)):
        found = jnode.solve(spring, y0, solver, args=1.0)
        for name, value in exact.items():
            np.testing.assert_allclose(found.y[name], value, atol=1e-4)
        assert found.stats["nfe"] > 0
    control = diffrax.PIDController(rtol=1e-5, atol=1e-5)
    found = jnode.solve(
        spring, y0, diffrax.Kvaerno3(), args=1.0, stepsize_controller=control
    )
    np.testing.assert_allclose(found.y["x"], exact["x"], atol=1e-3)
    assert "nfe" not in found.stats and found.stats["num_failed"] == 0


def test_events_and_saved_states():
    event = diffrax.Event(lambda t, y, args, **kwargs: y[0] - 0.5)
    saveat = diffrax.SaveAt(ts=jnp.asarray([0.25, 0.5]))
    solver = jnode.Solver("tsit5", rtol=1e-6, atol=1e-6, max_steps=64)
    found = jnode.solve(decay, jnp.ones(1), solver, event=event, saveat=saveat)
    np.testing.assert_allclose(found.ys[:, 0], np.exp([-0.25, -0.5]), rtol=1e-4)
    # The event ends it after the last step that it came in.
    assert found.result == diffrax.RESULTS.event_occurred and found.event_mask
    assert 0 < found.y[0] < 0.5 or found.y[0] == pytest.approx(0.5, abs=1e-3)
    assert found.stats["num_failed"] == 0


PID = diffrax.PIDController(rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("solver", "kwargs", "message"),
    [
        (jnode.Solver("rk4", steps=4), dict(steps=5), "steps must be left out"),
        (jnode.Solver("rk4", steps=4), dict(ts=[0, 1]), "ts must be left out"),
        (jnode.Solver("tsit5"), dict(stepsize_controller=PID), "be left out beside"),
        (jnode.Solver("tsit5"), dict(max_steps=4), "max_steps must be left out"),
        (jnode.Solver("rk4", steps=4), dict(max_steps=3), "at least the 4 steps"),
        (
            jnode.Solver("rk4", steps=4, adjoint="backsolve"),
            dict(adjoint=diffrax.DirectAdjoint()),
            "adjoint must be left out",
        ),
        (diffrax.Tsit5(), {}, "steps, ts or stepsize_controller must be given"),
        (diffrax.Tsit5(), dict(steps=2, ts=[0, 1]), "steps and ts must not be given"),
        (diffrax.Tsit5(), dict(steps=2, dt0=0.1), "steps and dt0 must not be given"),
        (diffrax.Tsit5(), dict(steps=0), "steps must be an integer"),
        (
            diffrax.Tsit5(),
            dict(steps=8, max_steps=7),
            "at least the number of steps, 8",
        ),
        (diffrax.Tsit5(), dict(ts=[0, 0.5, 0.4, 1]), "ts must increase from t0 = 0"),
        (diffrax.Tsit5(), dict(ts=[1, 0.5, 0]), "ts must increase from t0 = 0"),
        (diffrax.Tsit5(), dict(ts=[0, 0.5]), "ts must increase from t0 = 0"),
        (diffrax.Tsit5(), dict(dt0=-0.1), "dt0 must lead from"),
        (diffrax.Tsit5(), dict(steps=2, t1=np.inf), "t1 must be a finite number"),
    ],
)
def test_contradictions(solver, kwargs, message):
    with pytest.raises(ValueError, match=message):
        jnode.solve(decay, jnp.ones(2), solver, **kwargs)


@pytest.mark.slow
def test_fixed_steps_are_differentiable_in_both_modes(getkey):
    field, y0 = field_and_state(getkey())
    solver, v = jnode.Solver("rk4", steps=2), jr.normal(getkey(), (6,))
    for f in (field, jnode.PiecewiseField([field, field])):
        plain = f.bake()
        loss = lambda y: jnp.sum(jnode.solve(plain, y, solver).y ** 3)
        backward = jax.grad(loss)(y0)
        np.testing.assert_allclose(jax.jacfwd(loss)(y0), backward, rtol=1e-4)
        hessian = jax.hessian(loss)(y0)
        product = jax.jvp(jax.grad(loss), (y0,), (v,))[1]
        np.testing.assert_allclose(product, hessian @ v, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(hessian, hessian.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "adjoint", slow_but(["DirectAdjoint", "ForwardMode"], "ForwardMode")
)
def test_adaptive_steps_in_forward_mode(getkey, adjoint):
    adjoint = getattr(diffrax, adjoint)()
    field, y0 = field_and_state(getkey())
    plain, v = field.bake(), jr.normal(getkey(), (6,))
    solver = jnode.Solver("tsit5", rtol=1e-5, atol=1e-5, max_steps=32)
    run = lambda y: jnode.solve(plain, y, solver, adjoint=adjoint).y
    change = jax.jvp(run, (y0,), (v,))[1]
    expected = jax.vjp(lambda y: jnode.solve(plain, y, solver).y, y0)[1](change)[0]
    assert jnp.sum(expected * v) == pytest.approx(float(jnp.sum(change**2)), rel=1e-3)


@pytest.mark.parametrize("way", slow_but(WAYS, "fixed"))
def test_calls_outside_jit_compile_once(getkey, way):
    field, y0 = field_and_state(getkey())
    traces = []

    def counted(t, y, args):
        traces.append(1)
        return args(t, y)

    solver, plain = WAYS[way], field.bake()
    for call in (
        lambda y, t1: jnode.solve(counted, y, solver, args=plain, t1=t1).y,
        lambda y, t1: (
            jnode.solvers.solve_batch(counted, y[None], solver, args=plain, t1=t1).y
        ),
        lambda y, t1: trajectory(counted, y, solver, args=plain, t1=t1)[1],
    ):
        call(y0, 1.0)
        before = len(traces)
        for value in (y0 + 1, 2 * y0):
            call(value, 0.5)
        assert len(traces) == before > 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_limit_of_steps():
    def needed(most):
        solver = jnode.Solver("dopri5", max_steps=most)
        wide = lambda y: jnp.sum(jnode.solve(jnp_tanh, y, solver, throw=False).y)
        found: Any = jax.jit(jax.grad(wide)).lower(jnp.ones(10_000)).compile()
        return found.memory_analysis().temp_size_in_bytes

    few, many = needed(64), needed(4096)
    # 16 states of 40 kB, not 4096.
    assert many < few + 1_000_000


def jnp_tanh(t, y, args):
    return jnp.tanh(y)


@pytest.mark.parametrize(
    ("field", "error", "message"),
    [
        (lambda t, y, args: y[:2], ValueError, "of the state's shape"),
        (lambda t, y, args: (y, y), TypeError, "field must return an array"),
    ],
)
def test_fields_that_do_not_fit_their_state(field, error, message):
    with pytest.raises(error, match=message):
        jnode.solve(field, jnp.ones(3), jnode.Solver("rk4", steps=2))


def test_a_field_may_return_a_number():
    found = jnode.solve(lambda t, y, args: 2, jnp.zeros(3), diffrax.Euler(), steps=2)
    np.testing.assert_allclose(found.y, jnp.full(3, 2.0))


@pytest.mark.parametrize("count", slow_but([1, 3], 3))
@pytest.mark.parametrize("batch", slow_but([(), (2,)], ()))
def test_steps_among_frequencies_are_the_same_steps(getkey, count, batch):
    # Each step of its own weights, so that the pre-activation form saves nothing.
    make = lambda k: jnode.GradientFlowField((6, 5, 4), hidden=2, lipschitz=6.0, key=k)
    segments = [make(k) for k in jr.split(getkey(), count)]
    field = segments[0] if count == 1 else jnode.PiecewiseField(segments)
    solver = jnode.Solver("euler", steps=count)
    y0 = jr.normal(getkey(), (6, 5, *batch, 4))

    def fast(field, y):
        return jnode.solve(field, y, solver).y

    def slow(field, y):
        return trajectory(field, y, solver)[1][-1]

    np.testing.assert_allclose(fast(field, y0), slow(field, y0), atol=2e-6)
    back = jnode.solve(field, y0, solver, t0=1.0, t1=0.0).y
    there = trajectory(field, y0, solver, t0=1.0, t1=0.0)[1][-1]
    np.testing.assert_allclose(back, there, rtol=1e-5, atol=1e-4)

    def gradients(way):
        def value(field, y):
            return jnp.sum(jnp.sin(way(field, y)))

        of_field = eqx.filter_grad(value)(field, y0)
        return jax.tree.leaves((of_field, jax.grad(value, argnums=1)(field, y0)))

    for ours, theirs in zip(gradients(fast), gradients(slow), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)
    with pytest.raises(ValueError, match="height and width"):
        jnode.solve(field, y0.swapaxes(0, 1), solver)
