"""Batches solved as one array: what `jax.vmap` of a single solve gives."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jnode
from jnode import constraints
from jnode.constraints import constrained
from jnode.fields.base import as_two_layer, takes_batches, time_invariant
from jnode.linear import SpectralConv
from jnode.solvers import solve_batch
from tests.helpers import slow_but, small_model

SHAPE = (4, 3, 6)
BOTH = [jnode.Solver("tsit5"), jnode.Solver("rk4", steps=4)]
FIELDS = {
    "ortho": (jnode.OrthoField, {"time": True, "hidden": 8, "activation": "maxmin"}),
    "gradient_flow": (jnode.GradientFlowField, {"hidden": 4, "lipschitz": 3.0}),
    "free": (jnode.FreeField, {"padding": "circular"}),
    "zero-padded": (jnode.FreeField, {}),
    "normalised": (jnode.FreeField, {"group_norm": True}),
}


def make(name, key):
    kind, options = FIELDS[name]
    field = kind(SHAPE, key=key, **options)
    arrays, static = eqx.partition(field, eqx.is_inexact_array)
    # Biases and clocks start at 0, where they would hide mistakes.
    moved = jax.tree.map(
        lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape),
        arrays,
    )
    return eqx.combine(moved, static)


@pytest.mark.parametrize("name", slow_but(FIELDS, "gradient_flow"))
def test_fixed_steps(name, getkey):
    field, solver = make(name, getkey()), jnode.Solver("rk4", grid=(0.0, 0.3, 1.0))
    y0 = jax.random.normal(getkey(), (3, *SHAPE))

    def plain(field, y0):
        # Every stage by the field itself, with nothing taken together.
        a = jnode.solvers.trajectory(field, y0, solver)[1][-1]
        return a

    @eqx.filter_jit
    def both(field, y0):
        value = lambda solve: eqx.filter_value_and_grad(
            lambda f: jnp.sum(solve(f) ** 2)
        )
        one = value(lambda f: jax.vmap(lambda y: plain(f, y))(y0))(field)
        two = value(lambda f: solve_batch(f, y0, solver).y)(field)
        return one, two

    (value, grads), (batch_value, batch_grads) = both(field, y0)
    np.testing.assert_allclose(batch_value, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(batch_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * float(jnp.abs(b).max() + 1e-3))


def test_adaptive_steps_are_each_samples_own(getkey):
    field = jnode.OrthoField((5,), lipschitz=4.0, activation="tanh", key=getkey())
    solver = jnode.Solver("bosh3", rtol=1e-3, atol=1e-3)
    sizes = jnp.asarray([0.1, 1.0, 4.0])[:, None]
    y0 = jax.random.normal(getkey(), (3, 5)) * sizes

    @eqx.filter_jit
    def run(solve):
        def loss(inputs):
            solution = solve(*inputs)
            return jnp.sum(solution.y**2), solution

        return eqx.filter_value_and_grad(loss, has_aux=True)((field, y0))

    (_, one), grads = run(lambda f, y: jax.vmap(lambda y: jnode.solve(f, y, solver))(y))
    (_, two), batch_grads = run(lambda f, y: solve_batch(f, y, solver))
    for name in one.stats:
        np.testing.assert_array_equal(one.stats[name], two.stats[name], name)
    assert len(set(np.asarray(two.stats["num_steps"]))) > 1
    np.testing.assert_allclose(two.y, one.y, rtol=1e-4, atol=1e-5)
    for a, b in zip(jax.tree.leaves(batch_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * float(jnp.abs(b).max() + 1e-3))


@pytest.mark.slow
def test_more_steps_than_checkpoints_and_the_limit(getkey):
    field = jnode.OrthoField((3,), lipschitz=4.0, activation="tanh", key=getkey())
    y0 = jax.random.normal(getkey(), (2, 3))
    many = jnode.Solver("heun", rtol=1e-4, atol=1e-4, max_steps=200)

    @eqx.filter_jit
    def gradient(y0):
        loss = lambda y0: jnp.sum(solve_batch(field, y0, many).y ** 2)
        return jax.grad(loss)(y0), loss(y0 + 1e-2) - loss(y0 - 1e-2)

    grads, difference = gradient(y0)
    np.testing.assert_allclose(jnp.sum(grads) * 2e-2, difference, rtol=0.02)
    few = jnode.Solver("heun", rtol=1e-4, atol=1e-4, max_steps=4)
    ended = eqx.filter_jit(lambda y: solve_batch(field, y, few, throw=False))(y0)
    np.testing.assert_array_equal(ended.stats["num_failed"], [1, 1])
    with pytest.raises(RuntimeError, match="max_steps=4"):
        eqx.filter_jit(lambda y: solve_batch(field, y, few).y)(y0).block_until_ready()


@pytest.mark.parametrize("solver", slow_but([None, jnode.Solver("tsit5")], None))
def test_model_batch_is_vmap(solver, getkey):
    model = small_model(getkey(), segments=(2,), solver=solver)
    images = jax.random.uniform(getkey(), (3, 8, 8, 1))
    batch, single = eqx.filter_jit(lambda m, x: (jnode.batched(m)(x), jax.vmap(m)(x)))(
        model, images
    )
    np.testing.assert_allclose(batch, single, atol=1e-5)
    with pytest.raises(ValueError, match="images must have shape"):
        jnode.batched(model)(images[:, 1:])


def test_composition_is_one_map(getkey):
    first = constraints.plain(constrained((3, 4, 3), 4, key=getkey()))
    second = constraints.plain(constrained((3, 4, 4), 2, key=getkey()))
    x = jax.random.normal(getkey(), (3, 4, 3))
    both = second @ first
    assert isinstance(both, SpectralConv)
    np.testing.assert_allclose(both(x), second(first(x)), atol=1e-5)


@pytest.mark.parametrize("padding", ["circular", "zero", None])
def test_a_skew_part_is_one_map(getkey, padding):
    shape = (5,) if padding is None else (4, 3, 5)
    options = {} if padding is None else {"padding": padding}
    half = constraints.plain(
        constrained(shape, 5, constraint="rescaled", key=getkey(), **options)
    )
    y = jax.random.normal(getkey(), shape)
    skew = half - half.T
    assert type(skew) is type(half)
    # The norm of half of a map less its transpose is at most that of the map.
    assert skew.norm() <= 2 * half.norm() * (1 + 1e-5)
    np.testing.assert_allclose(skew(y), half(y) - half.T(y), atol=1e-6)
    assert abs(jnp.vdot(y, skew(y))) < 1e-5


@pytest.mark.slow
def test_adaptive_batches_run_backwards(getkey):
    field = jnode.OrthoField((5,), lipschitz=2.0, activation="tanh", key=getkey())
    solver = jnode.Solver("dopri5", rtol=1e-6, atol=1e-6)
    y0 = jax.random.normal(getkey(), (3, 5)) * jnp.asarray([0.1, 1.0, 4.0])[:, None]
    run = lambda y, t0, t1: solve_batch(field, y, solver, t0=t0, t1=t1)
    for traced in (run, jax.jit(run)):
        there = traced(y0, 0.0, 1.0)
        back = traced(there.y, 1.0, 0.0)
        np.testing.assert_allclose(back.y, y0, atol=2e-5)
        assert (back.stats["num_accepted_steps"] > 1).all()
        still = traced(y0, 1.0, 1.0)
        np.testing.assert_array_equal(still.y, y0)
        assert (still.stats["num_steps"] == 0).all()


@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.slow
def test_adaptive_batches_and_their_times(getkey, times):
    field = jnode.OrthoField((3,), activation="tanh", key=getkey()).bake()
    solver = jnode.Solver("dopri5", rtol=1e-6, atol=1e-6)
    y0 = jax.random.normal(getkey(), (2, 3))
    run = lambda t0, t1: solve_batch(field, y0, solver, t0=t0, t1=t1).y
    _, pull = jax.vjp(run, *times)
    end, v = run(*times), jax.random.normal(getkey(), (2, 3))
    rate = field(0.0, end)
    begin, stop = pull(v)
    # The field does not move with time: a later start is an earlier end.
    np.testing.assert_allclose(stop, jnp.sum(rate * v), atol=1e-4)
    np.testing.assert_allclose(begin, -stop, rtol=1e-6)
    assert abs(stop) > 1e-2
    # And the other gradients are as they were.
    both = jax.grad(lambda y, t: jnp.sum(v * solve_batch(field, y, solver, t1=t).y), 0)
    one = jax.grad(lambda y: jnp.sum(v * solve_batch(field, y, solver).y))(y0)
    np.testing.assert_allclose(both(y0, 1.0), one, atol=1e-5)


@pytest.mark.parametrize(
    "solver", slow_but([None, jnode.Solver("tsit5")], None), ids=str
)
def test_gradients_of_each_sample(solver, getkey):
    model = small_model(getkey(), solver=solver)
    images = jax.random.uniform(getkey(), (3, 8, 8, 1))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, image):
        return jnp.sum(eqx.combine(params, static)(image) ** 2)

    def whole(params):
        return jnp.sum(jnode.batched(eqx.combine(params, static))(images) ** 2)

    grad = jax.jit(jax.grad(loss))
    loop = [grad(params, image) for image in images]
    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(params, images)
    total = jax.jit(jax.grad(whole))(params)
    for k, one in enumerate(loop):
        for a, b in zip(jax.tree.leaves(each), jax.tree.leaves(one), strict=True):
            largest = float(jnp.abs(b).max())
            np.testing.assert_allclose(a[k], b, atol=1e-4 * (1e-2 + largest))
    sums = jax.tree.map(lambda *leaves: sum(leaves), *loop)
    for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(sums), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * (1e-2 + float(jnp.abs(b).max())))


@pytest.mark.parametrize("solver", [None, jnode.Solver("tsit5", rtol=1e-2)], ids=str)
def test_batched_models(solver, getkey):
    model = small_model(getkey(), segments=(2,), solver=solver)
    images = jax.random.uniform(getkey(), (3, 8, 8, 1))
    whole = jnode.batched(model)
    logits = whole(images)
    np.testing.assert_allclose(logits, jax.jit(jax.vmap(model))(images), atol=1e-5)
    solution = whole.solution(images)
    assert solution.y.shape[0] == 3 and solution.stats["nfe"].shape == (3,)
    ends = jax.vmap(lambda y: model.head(y.ravel()))(solution.y)
    np.testing.assert_allclose(ends, logits, atol=1e-5)
    with pytest.raises(ValueError, match="images must have shape"):
        whole(images[:, 1:])
    # Under jit, the model as data; any other function of one image.
    np.testing.assert_allclose(jax.jit(lambda m, x: m(x))(whole, images), logits)
    other = jnode.batched(lambda image: jnp.sum(image, axis=(0, 1)))
    np.testing.assert_allclose(other(images), jnp.sum(images, axis=(1, 2)), rtol=1e-6)
    with pytest.raises(TypeError, match="must be an ODEClassifier"):
        other.solution(images)


def test_other_tolerances_compile_nothing(getkey):
    images = jax.random.uniform(getkey(), (2, 8, 8, 1))
    traces = []

    class Counted(jnode.fields.AbstractVectorField):
        field: jnode.OrthoField

        def __call__(self, t, y, args=None):
            traces.append(1)
            return self.field(t, y, args)

        def bounds(self):
            return self.field.bounds()

    model = small_model(getkey(), "ortho", solver=jnode.Solver("bosh3", rtol=1e-1))
    shape = model.encode(images[0]).shape
    field = Counted(jnode.OrthoField(shape, key=getkey()))
    model = eqx.tree_at(lambda m: m.blocks[0].field, model, field)
    coarse = jnode.batched(model).solution(images)
    before = len(traces)
    finer = model.with_solver(jnode.Solver("bosh3", rtol=1e-4, atol=1e-5))
    fine = jnode.batched(finer).solution(images)
    assert len(traces) == before > 0
    assert (fine.stats["num_steps"] > coarse.stats["num_steps"]).all()


def test_batches_of_other_states():
    spring = lambda t, y, k: (y[1], -k * y[0])
    y0 = (jnp.ones(2), jnp.zeros(2))
    for solver in (jnode.Solver("rk4", steps=16), jnode.Solver("tsit5", rtol=1e-5)):
        found = solve_batch(spring, y0, solver, args=1.0)
        np.testing.assert_allclose(found.y[0], np.full(2, np.cos(1.0)), atol=1e-4)
    rates = lambda t, y, args: -y
    scalars = solve_batch(rates, np.arange(3), jnode.Solver("rk4", steps=16))
    np.testing.assert_allclose(scalars.y, np.arange(3) * np.exp(-1.0), rtol=1e-5)


def test_adaptive_stages_are_evaluated_at_their_times(getkey):
    # Of a field that may move with time, and takes batches.
    class Moving(jnode.AbstractVectorField):
        field: jnode.OrthoField
        takes_batches = True

        def __call__(self, t, y, args=None):
            return jnp.cos(3 * jnp.asarray(t, y.dtype)) * self.field(t, y)

        def bounds(self):
            return self.field.bounds()

    field = Moving(jnode.OrthoField((3,), key=getkey()))
    y0 = jax.random.normal(getkey(), (2, 3))
    assert takes_batches(field) and not time_invariant(field)
    solver = jnode.Solver("dopri5", rtol=1e-6, atol=1e-6)
    fine = solve_batch(field, y0, jnode.Solver("rk4", steps=64)).y
    np.testing.assert_allclose(solve_batch(field, y0, solver).y, fine, atol=1e-5)


@pytest.mark.parametrize("times", slow_but([(0.0, 1.0), (1.0, 0.2)], (0.0, 1.0)))
def test_adaptive_steps_of_fields_that_move_and_take_one_state(getkey, times):
    """Steps and gradients are those of each solve alone; gradients with respect to the
    times, those of many steps."""
    with jax.enable_x64(True):
        options = {"time": True, "group_norm": True, "activation": "tanh"}
        field = jnode.FreeField((4, 4, 4), **options, key=getkey())
        wide = lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x
        field = jax.tree.map(wide, field)
        assert not takes_batches(field) and not time_invariant(field)
        sizes = jnp.asarray([0.1, 0.3, 1.0])[:, None, None, None]
        y0 = jax.random.normal(getkey(), (3, 4, 4, 4)) * sizes
        weights = jax.random.normal(getkey(), y0.shape)

        @eqx.filter_jit
        def run(solve):
            def loss(inputs):
                solution = solve(*inputs)
                return jnp.sum(weights * solution.y), solution.stats

            inputs = (field, y0, *map(jnp.asarray, times))
            return eqx.filter_value_and_grad(loss, has_aux=True)(inputs)

        solver = jnode.Solver("dopri5", rtol=1e-5, atol=1e-5)
        fine = jnode.Solver("rk4", steps=128)
        alone = lambda f, y: jnode.solve(f, y, solver, t0=times[0], t1=times[1])
        (one, stats), grads = run(lambda f, y, *_: jax.vmap(lambda y: alone(f, y))(y))
        (two, batch_stats), batch_grads = run(
            lambda f, y, t0, t1: solve_batch(f, y, solver, t0=t0, t1=t1)
        )
        _, expected = run(lambda f, y, t0, t1: solve_batch(f, y, fine, t0=t0, t1=t1))
    assert len(set(np.asarray(batch_stats["num_steps"]))) > 1
    for name in stats:
        np.testing.assert_array_equal(stats[name], batch_stats[name], name)
    np.testing.assert_allclose(two, one, rtol=1e-8)
    leaves = [[*map(np.asarray, jax.tree.leaves(g[:2]))] for g in (grads, batch_grads)]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-8 * np.abs(a).max())
    np.testing.assert_allclose(batch_grads[2:], expected[2:], rtol=1e-2)


def compare(field, y0, solver, **options):
    """A batch beside solves alone: states and statistics are the same."""
    options = {"throw": False, **options}
    alone = jax.vmap(lambda y: jnode.solve(field, y, solver, **options))
    one, two = jax.jit(alone)(y0), solve_batch(field, y0, solver, **options)
    for name in one.stats:
        np.testing.assert_array_equal(two.stats[name], one.stats[name], name)
    return one, two


def test_a_trial_step_that_is_not_a_number_is_rejected():
    # Too long a step ends below 0, where the field is not defined.
    field = lambda t, y, _: -20 * (jnp.sqrt(y) - 0.1)
    y0, solver = jnp.asarray([[4.0], [0.5]]), jnode.Solver("bosh3", rtol=1e-2)
    one, two = compare(field, y0, solver, t1=0.25)
    assert (two.stats["num_failed"] == 0).all()
    assert (two.stats["num_rejected_steps"] > 0).all()
    np.testing.assert_allclose(two.y, one.y, rtol=1e-4)


def test_a_ladder_that_gives_up_on_one_sample():
    field = lambda t, y, _: jnp.where(y > 0.5, jnp.nan, 1.0)
    solver = jnode.Solver("heun", controller="ladder", max_steps=100)
    _, two = compare(field, jnp.asarray([[0.0], [-3.0]]), solver)
    np.testing.assert_array_equal(two.stats["num_failed"], [1, 0])
    assert two.stats["num_steps"][0] < 100


def test_a_finished_sample_is_not_evaluated_outside_its_times():
    # 1/t is infinite at 0, where no step begins.
    field = lambda t, y, _: y * y / t
    y0, solver = jnp.asarray([[0.01], [1.0]]), jnode.Solver("heun", max_steps=64)
    options = {"t0": 1.0, "t1": 2.0, "throw": False}
    single = lambda y: jnode.solve(field, y, solver, **options).y
    one = jax.grad(lambda y: jnp.sum(jax.vmap(single)(y)))(y0)
    two = jax.grad(lambda y: jnp.sum(solve_batch(field, y, solver, **options).y))(y0)
    assert jnp.isfinite(two).all()
    np.testing.assert_allclose(two, one, rtol=1e-5)


@pytest.mark.parametrize(
    "solver",
    [
        jnode.Solver("rk4", steps=7),
        jnode.Solver("dopri8", rtol=1e-1, atol=1e-1),
        jnode.Solver("dopri8", rtol=1e-1, atol=1e-1, controller="ladder"),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("times", [(0.0, 0.7), (0.7, 0.0)])
def test_no_stage_lies_beyond_the_end(solver, batch, times):
    # In float32 0.6 + 0.1 is larger than 0.7.
    low, high = jnp.float32(min(times)), jnp.float32(max(times))
    ones = lambda t, y, _: jnp.where((t < low) | (t > high), jnp.nan, 1.0) + 0 * y
    solve = solve_batch if batch else jnode.solve
    y0 = jnp.zeros((2, 1))
    found = solve(ones, y0, solver, t0=times[0], t1=times[1], throw=False)
    np.testing.assert_allclose(found.y, times[1] - times[0], rtol=1e-5)


@pytest.mark.parametrize("solver", BOTH)
@pytest.mark.parametrize("number", [1.0, np.float32(1), jnp.asarray(1.0)])
def test_gradients_with_respect_to_any_number(solver, number):
    class Decay(eqx.Module):
        rate: jax.Array

        def __call__(self, t, y, args):
            return -self.rate * y

    class Holds(eqx.Module):
        fn: Callable

        def __call__(self, t, y, args):
            return self.fn(y)

    y0 = jnp.asarray([[1.0], [0.5]])
    end = lambda field, args=None: jnp.sum(solve_batch(field, y0, solver, args=args).y)
    ways = (
        lambda a: end(Decay(a)),
        lambda a: end(lambda t, y, rate: -rate * y, a),
        lambda a: end(lambda t, y, _: -a * y),
        lambda a: end(Holds(lambda y: -a * y)),
    )
    for way in ways:
        np.testing.assert_allclose(jax.grad(way)(number), -1.5 * np.exp(-1), rtol=5e-3)


@pytest.mark.parametrize("shape", [(8,), (4, 3, 8)])
def test_a_batch_of_one_is_not_solved_in_the_hidden_space(getkey, shape):
    """There the product of the two maps would cost more than it saves."""
    field, solver = jnode.OrthoField(shape, key=getkey()), jnode.Solver("rk4", steps=1)
    y0 = jax.random.normal(getkey(), (16, *shape))
    form = as_two_layer(field.bake())
    assert form is not None
    cheaper = [form.hidden_is_cheaper(4, jnp.moveaxis(y0[:n], 0, -2)) for n in (1, 16)]
    assert cheaper == [False, True] and form.hidden_is_cheaper(4, y0[0])
    one = [solve_batch(field, y0[k : k + 1], solver).y for k in range(2)]
    many = solve_batch(field, y0, solver).y[:2]
    np.testing.assert_allclose(jnp.concatenate(one), many, atol=1e-5)


@pytest.mark.parametrize("solver", BOTH)
def test_empty_batches(solver, getkey):
    fields = (
        (jnode.OrthoField((3,), key=getkey()), (3,)),
        (jnode.OrthoField((4, 3, 4), key=getkey()), (4, 3, 4)),
        (jnode.FreeField((4, 3, 4), time=True, key=getkey()), (4, 3, 4)),
    )
    for field, shape in fields:
        loss = lambda y: jnp.sum(solve_batch(field, y, solver).y)
        assert jax.grad(loss)(jnp.zeros((0, *shape))).shape == (0, *shape)
    model = small_model(getkey(), solver=solver)
    assert jnode.batched(model)(jnp.zeros((0, 8, 8, 1))).shape == (0, 4)
