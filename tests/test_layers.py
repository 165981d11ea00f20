"""Models of several layers: ODE blocks on changing grids, dense ones, biases."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode import certify
from jnode.constraints import constrained
from jnode.linear import Dense, SpaceToDepth
from jnode.models import (
    AbstractLayer,
    ConvEncoder,
    Flatten,
    Head,
    Lift,
    Linear,
    ODEBlock,
    PositionBias,
    step_lengths,
)
from tests.helpers import slow_but, small_model

EULER, ADAPTIVE = jnode.Solver("euler", steps=4), jnode.Solver("bosh3", rtol=1e-2)
OPTIONS = {"segments": (1, 2), "dense": 1, "position": True}


def shaken(model, key):
    """With biases that are not 0."""
    leaves, tree = jax.tree.flatten(model)
    keys = jr.split(key, len(leaves))
    moved = [
        x + 0.1 * jr.normal(k, x.shape) if eqx.is_inexact_array(x) else x
        for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


def configured(key, solver=EULER, field="gradient_flow", **options):
    """Lift, bias, block, halved grid, bias, block, dense block; on images of 8x8."""
    model = small_model(key, field, solver, **OPTIONS | {"lipschitz": 3.0} | options)
    return shaken(model, key)


def by_hand(key, solver="heun"):
    """An orthogonal convolution, of which one half of the channels is left, between
    two blocks of different fields; and a dense map."""
    keys = jr.split(key, 5)
    middle = constrained((2, 2, 16), 8, key=keys[0])
    first = jnode.OrthoField((4, 4, 4), lipschitz=0.5, activation="tanh", key=keys[1])
    second = jnode.SkewField((2, 2, 8), lipschitz=0.5, damping=0.5, key=keys[2])
    layers = (
        Lift((8, 8, 1), patch=2, features=4),
        ODEBlock(first, jnode.Solver(solver, steps=2), 0.0, 0.5),
        Linear(SpaceToDepth(2)),
        Linear(middle),
        ODEBlock(second, jnode.Solver(solver, grid=(0.0, 0.3, 1.0)), 0.5, 2.0),
        Flatten(),
        Linear(Dense(jr.normal(keys[3], (16, 32)) / 32**0.5)),
    )
    head = Head(16, 4, unit_norm=True, key=keys[4])
    return shaken(jnode.ODEClassifier(layers, head, (8, 8, 1)), key)


MODELS = {"configured": configured, "by hand": by_hand}


def images_of(key, n=3):
    return jr.uniform(key, (n, 8, 8, 1))


def test_what_a_configuration_builds(getkey):
    model = configured(getkey())
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == [
        *("Lift", "PositionBias", "ODEBlock", "Linear", "PositionBias", "ODEBlock"),
        *("Flatten", "ODEBlock"),
    ]
    assert [(b.t0, b.t1) for b in model.blocks] == [(0, 0.25), (0.25, 0.75), (0.75, 1)]
    assert [b.solver.steps for b in model.blocks] == [1, 2, 1]
    assert model.solver == EULER and model.jumps == (0.25, 0.5, 0.75)
    shapes = [state.shape for state in model.states(jnp.zeros((8, 8, 1)))]
    assert shapes == [*[(4, 4, 4)] * 3, *[(2, 2, 16)] * 3, (64,), (64,)]
    biases = [block.field.biases for block in model.blocks[::2]]
    assert [b[0].shape for b in biases] == [(4,), (16,)]
    options = dict(hidden=8, dense_hidden=5, **OPTIONS)
    wide = small_model(getkey(), "gradient_flow", EULER, **options)
    fields: list[Any] = [getattr(b.field, "segments", b.field) for b in wide.blocks]
    hidden = [field.biases[0].shape[-1] for field in fields]
    assert hidden == [8, 32, 5]


@pytest.mark.parametrize("solver", slow_but([EULER, ADAPTIVE], EULER), ids=str)
def test_batched_is_vmap(getkey, solver):
    model, images = configured(getkey(), solver), images_of(getkey())
    whole = jnode.batched(model)
    single = jax.jit(jax.vmap(model))(images)
    np.testing.assert_allclose(whole(images), single, atol=2e-5)
    solution = whole.solution(images)
    assert solution.y.shape == (3, 64)
    steps = solution.stats["num_accepted_steps"]
    assert (steps == 4).all() if solver is EULER else (steps >= 4).all()
    assert (solution.t0 == 0).all() and (solution.t1 == 1).all()
    logits = jax.vmap(model.head)(jax.vmap(model.embed)(images))
    np.testing.assert_allclose(logits, single, atol=2e-5)


@pytest.mark.slow
def test_other_tolerances_compile_nothing_in_any_block(getkey):
    model, images = configured(getkey(), ADAPTIVE), images_of(getkey())
    coarse = jnode.batched(model).solution(images)
    traces = []
    finer = model.with_solver(jnode.Solver("bosh3", rtol=1e-5, atol=1e-6))

    @jax.jit
    def solve(whole, images):
        traces.append(1)
        return whole.solution(images)

    solve(jnode.batched(model), images)
    fine = solve(jnode.batched(finer), images)
    assert len(traces) == 1
    assert (fine.stats["num_steps"] > coarse.stats["num_steps"]).all()


@pytest.mark.parametrize("make", slow_but(MODELS.values(), by_hand), ids=MODELS)
def test_no_search_refutes_the_constant(getkey, make):
    model, starts = make(getkey()).bake(), images_of(getkey(), 4)
    search = jax.jit(
        jax.vmap(
            lambda x, key: certify.lipschitz_lower_bound(
                model.embed, x, key=key, steps=150, rate=0.2
            )
        )
    )
    found = float(search(starts, jr.split(getkey(), 4)).max())
    bound = float(model.lipschitz())
    assert found <= bound * (1 + 1e-4)
    # How much room is left is no secret: a bound at a third would be refuted.
    assert found > bound / 3


def test_a_bound_that_is_a_little_lower_is_refuted(getkey):
    """Where every layer reaches its constant in the same direction."""
    expand = lambda gain: jnode.Certified(
        lambda t, y, args: gain * y, bounds=lambda fn: jnode.Bounds(gain)
    )
    layers = (
        Lift((8, 8, 1), patch=2, features=4),
        ODEBlock(expand(1.0), jnode.Solver("euler", steps=1), 0.0, 0.25),
        PositionBias((4, 4, 4)),
        Linear(SpaceToDepth(2)),
        ODEBlock(expand(2.0), jnode.Solver("euler", steps=3), 0.25, 1.0),
    )
    head = Head(64, 3, unit_norm=True, key=getkey())
    model = jnode.ODEClassifier(layers, head, (8, 8, 1))
    found = certify.lipschitz_lower_bound(
        model.embed, images_of(getkey(), 1)[0], key=getkey(), steps=20
    )
    bound = float(model.lipschitz())
    assert bound == pytest.approx(1.25 * 1.5**3, rel=1e-4)
    assert 0.99 * bound < found <= bound * (1 + 1e-5)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.slow
def test_no_attack_inside_the_radius_of_layers(getkey, make):
    model, images = make(getkey()).bake(), images_of(getkey(), 12)
    predictions = jnp.argmax(jax.vmap(model)(images), axis=1)
    radii = certify.radius(model, images)
    local = eqx.filter_jit(certify.local_radius)(model, images)
    assert (radii > 0).mean() > 0.6
    assert (local >= radii * (1 - 1e-5)).all()
    attack, whole = jnode.attacks.PGD(steps=25), jnode.batched(model)

    def misled(epsilon):
        budget = jnode.attacks.Budget("l2", epsilon)
        moved = attack(whole, images, predictions, budget, key=getkey())
        return jnp.argmax(jax.vmap(model)(moved), axis=1) != predictions

    assert not misled(0.999 * local).any()
    assert misled(4.0).any()  # the attack is not toothless


@pytest.mark.slow
def test_local_radii_beat_global_ones_through_several_blocks(getkey):
    model, images = by_hand(getkey()), images_of(getkey(), 8)
    local = certify.local_radius(model, images)
    assert (local > 1.05 * certify.radius(model, images)).any()


@pytest.mark.slow
def test_local_gradients_are_those_of_the_whole_model(getkey):
    """At radius 0 the bound is the gradient's norm, layers and all."""
    from jnode.certify.local import _forward, _gradient_bound

    model, image = by_hand(getkey()).bake(), images_of(getkey(), 1)[0]
    row = jr.normal(getkey(), (16,))
    gradient = jax.grad(lambda x: jnp.vdot(row, model.embed(x)))(image)
    parts = list(_forward(model, image))
    bound = float(_gradient_bound(parts, row, jnp.zeros(()), 1e-5))
    exact = float(jnp.linalg.norm(gradient))
    assert exact <= bound <= 1.05 * exact


@pytest.mark.slow
def test_free_layers_have_no_certificate(getkey):
    class Square(AbstractLayer):
        affine: ClassVar[bool] = False

        def __call__(self, x):
            return x**2

        def lipschitz(self):
            return jnp.asarray(jnp.inf)

    model, images = configured(getkey()), images_of(getkey())
    bent = dataclasses.replace(model, layers=(*model.layers, Square()))
    assert bent.lipschitz() == jnp.inf
    assert "unconstrained" in (certify.refusal(bent) or "")
    for radius in (certify.radius, certify.local_radius):
        assert (radius(bent, images) == 0).all()
    # A layer that is not affine, but bounded, keeps the global radius.
    halved = type("Halved", (Square,), {"lipschitz": lambda self: jnp.asarray(0.5)})
    bent = dataclasses.replace(model, layers=(*model.layers, halved()))
    radii = certify.radius(bent, images)
    assert (radii > 0).any()
    np.testing.assert_array_equal(certify.local_radius(bent, images), radii)


@pytest.mark.slow
def test_biases_of_all_layers_count_in_the_rounding(getkey):
    """Of positions too, where what one adds another takes away."""
    model, images = configured(getkey()), images_of(getkey(), 16)
    assert (certify.radius(model, images) > 0).mean() > 0.6
    far = 1e5 * jnp.ones(64)
    there = PositionBias((4, 4, 4))
    layers = list(model.layers)
    for at, sign in ((2, -1.0), (1, 1.0)):
        moved = eqx.tree_at(lambda b: b.bias, there, sign * far)
        layers.insert(at, moved)
    hidden = dataclasses.replace(model, layers=layers)
    small = jax.vmap(hidden)(images) - jax.vmap(model)(images)
    assert jnp.abs(small).max() < 0.5
    assert (certify.radius(hidden, images) == 0).all()
    assert (certify.local_radius(hidden, images[:4]) == 0).all()


def test_errors_grow_by_the_steps_behind_them():
    """Each of four Euler steps of y' = ay multiplies by 1 + a / 4."""

    class Grow(jnode.AbstractVectorField):
        rate: jax.Array

        def __call__(self, t, y, args=None):
            return self.rate * y

        def bounds(self):
            return jnode.Bounds(jnp.abs(self.rate), (self.rate, self.rate))

    def growth(*rates):
        field = jnode.PiecewiseField([Grow(jnp.asarray(a)) for a in rates])
        block = ODEBlock(field, jnode.Solver("euler", steps=4))
        head = Head(4, 2, unit_norm=True, key=jr.key(0))
        model = jnode.ODEClassifier([Flatten(), block], head, (2, 2, 1))
        return float(model.bounds().growth)

    assert growth(0.0, 0.0, 0.0, 0.0) == pytest.approx(1, abs=1e-3)
    assert growth(4.0, 0.0, 0.0, 0.0) == pytest.approx(2, rel=1e-3)
    assert growth(-2.0, 4.0, 0.0, 8.0) == pytest.approx(6, rel=1e-3)
    assert growth(8.0, 0.0, 0.0, -2.0) == pytest.approx(1.5, rel=1e-3)


def test_with_solver_gives_each_block_its_part(getkey):
    model = small_model(getkey(), "gradient_flow", ADAPTIVE, **OPTIONS)
    assert model.solver == ADAPTIVE and model.lipschitz() == jnp.inf
    fixed = model.with_solver(jnode.Solver("rk4", steps=8))
    assert [b.solver.steps for b in fixed.blocks] == [2, 4, 2]
    assert fixed.solver == jnode.Solver("rk4", steps=8)
    grid = (0.0, 0.1, 0.25, 0.5, 0.6, 0.75, 1.0)
    uneven = model.with_solver(jnode.Solver("heun", grid=grid))
    assert [b.solver.steps for b in uneven.blocks] == [2, 3, 1]
    assert uneven.blocks[0].solver.grid == pytest.approx((0, 0.4, 1))
    assert uneven.solver.grid == pytest.approx(grid)
    with pytest.raises(ValueError, match="steps must be a multiple of 4"):
        model.with_solver(jnode.Solver("euler", steps=6))
    with pytest.raises(ValueError, match="grid must hold 0.75"):
        model.with_solver(jnode.Solver("euler", grid=(0, 0.25, 0.5, 1)))


@pytest.mark.slow
def test_each_block_is_frozen_on_its_own_input(getkey):
    model = configured(getkey(), ADAPTIVE, segments=(1, 1), dense=0)
    images = images_of(getkey(), 1)
    frozen = model.freeze(images[0])
    solution = jnode.batched(model).solution(images)
    np.testing.assert_allclose(
        frozen.embed(images[0]), solution.y[0].ravel(), atol=1e-4
    )
    assert frozen.solver.steps == int(solution.stats["num_accepted_steps"][0])
    assert (certify.radius(frozen, images) > 0).all()
    with pytest.raises(ValueError, match="must be adaptive to be frozen"):
        frozen.freeze(images[0])


def test_lengths_of_steps(getkey):
    """On f = -y, whose Euler steps halve the state."""
    decay = jnode.Certified(
        lambda t, y, args: -y, bounds=lambda fn: jnode.Bounds(1.0, (-1.0, -1.0))
    )
    layers = (
        Lift((8, 8, 1), patch=2, features=4),
        ODEBlock(decay, jnode.Solver("euler", steps=2), 0.0, 1.0),
        Linear(SpaceToDepth(2)),
        ODEBlock(decay, jnode.Solver("euler", steps=1), 1.0, 1.5),
    )
    head = Head(64, 3, unit_norm=True, key=getkey())
    model = jnode.ODEClassifier(layers, head, (8, 8, 1))
    images = images_of(getkey())
    size = jnp.linalg.norm((images - 0.5).reshape(3, -1), axis=1).mean()
    first, second = step_lengths(model, images)
    np.testing.assert_allclose(first, size * np.asarray([0.5, 0.25]), rtol=1e-5)
    np.testing.assert_allclose(second, size * np.asarray([0.125]), rtol=1e-5)


@pytest.mark.slow
def test_trajectories_end_where_the_blocks_do(getkey):
    model, image = configured(getkey()), images_of(getkey(), 1)[0]
    paths = model.trajectories(image)
    states = zip(model.states(image), model.layers, strict=True)
    ends = [y for y, layer in states if not layer.affine]
    for (times, path), block, end in zip(paths, model.blocks, ends, strict=True):
        assert (times[0], times[-1]) == (block.t0, block.t1)
        np.testing.assert_allclose(path[-1], end, atol=1e-5)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda k: ODEBlock(flow(k), EULER, 1.0, 1.0), "t1 must be finite and greater"),
        (lambda k: classifier(k, Flatten()), "at least one ODEBlock"),
        (
            lambda k: classifier(
                k, ODEBlock(flow(k), EULER, 0.0, 0.5), ODEBlock(flow(k), EULER)
            ),
            "blocks of consecutive times",
        ),
        (
            lambda k: classifier(
                k,
                ODEBlock(flow(k), EULER, 0.0, 0.5),
                ODEBlock(flow(k), ADAPTIVE, 0.5, 1.0),
            ),
            "differ in nothing but their steps",
        ),
        (lambda k: jnode.ModelConfig(segments=()), r"as \(8,\) is for one"),
        (lambda k: jnode.ModelConfig(dense=-1), "dense must be an integer"),
        (lambda k: jnode.ModelConfig(dense_hidden=4), "dense_hidden must be left out"),
        (
            lambda k: jnode.ModelConfig("skew", dense=1, dense_hidden=4),
            "dense_hidden must be left out",
        ),
        (
            lambda k: small_model(k, solver=EULER, segments=(1, 1, 1, 1)),
            "no more blocks than the grid can be halved",
        ),
        (
            lambda k: small_model(k, solver=jnode.Solver("rk4", steps=4), dense=2),
            "steps must be a multiple of 3",
        ),
    ],
)
def test_what_makes_no_model(getkey, act, message):
    with pytest.raises(ValueError, match=message):
        act(getkey())


def flow(key):
    return jnode.GradientFlowField((4, 4, 4), key=key)


def classifier(key, *layers):
    lift = Lift((8, 8, 1), patch=2, features=4)
    head = Head(64, 3, unit_norm=True, key=key)
    return jnode.ODEClassifier((lift, *layers), head, (8, 8, 1))


def test_a_free_encoder_in_front_of_blocks(getkey):
    config = jnode.ModelConfig("free", encoder="conv", features=4, segments=(1, 1))
    solver, shape = jnode.Solver("euler", steps=2), (16, 16, 1)
    model = jnode.build(config, solver, image_shape=shape, classes=3, key=getkey())
    assert isinstance(model.layers[0], ConvEncoder)
    assert model.states(jnp.zeros((16, 16, 1)))[-1].shape == (2, 2, 16)
