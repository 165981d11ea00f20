"""Certified radii of adaptive solves: constants, every path, caps, power."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from benchmarks.adaptive_hunt import (
    attacked,
    certified,
    embedded,
    first_errors,
    fold_model,
    model_of,
)
from jnode import certify
from jnode.certify import paths
from jnode.certify.adaptive import adaptive_radii
from jnode.certify.decisions import constants
from jnode.solvers import LadderController, Solver
from jnode.solvers.tableaus import embedded_pair
from tests.helpers import slow_but, small_model

METHODS = {
    "heun": diffrax.Heun(),
    "bosh3": diffrax.Bosh3(),
    "dopri5": diffrax.Dopri5(),
    "tsit5": diffrax.Tsit5(),
}


def attempt(field, method, h, y):
    """The next state and the error estimate, in NumPy's double precision."""
    a, b, _, e = embedded_pair(method)
    ks = []
    for i in range(len(b)):
        inner = y + h * sum((a[i, j] * ks[j] for j in range(i)), np.zeros_like(y))
        ks.append(np.asarray(field(0.0, jnp.asarray(inner))))
    combined = lambda w: h * sum(x * k for x, k in zip(w, ks, strict=True))
    return y + combined(b), combined(e)


def table_of(bounds, method, ladder, size):
    """Compiled, as it always is."""
    make = lambda bounds: constants(bounds, method, ladder, (0.0, 1.0), size)
    return jax.jit(make)(bounds)


@pytest.mark.parametrize("name", slow_but(METHODS, "bosh3"))
@pytest.mark.parametrize("kind", ["ortho", "flow"])
def test_constants_hold(getkey, x64, name, kind):
    """Of neighbours at random and along the direction that parts them most."""
    make = jnode.OrthoField if kind == "ortho" else jnode.GradientFlowField
    field = make((5,), lipschitz=1.6, key=getkey()).bake()
    method, tol = METHODS[name], 0.01
    ladder = LadderController(0.1, tol)
    table = table_of(field.bounds(), method, ladder, 5)
    evaluate = jax.jit(lambda t, y: field(t, y))
    rng = np.random.default_rng(0)
    worst = {"growth": 0.0, "accept": 0.0, "double": 0.0}
    for trial in range(60):
        level = trial % 3
        y = 2 * rng.normal(size=5)
        move = rng.normal(size=5) * 10.0 ** rng.uniform(-3, 0)
        (y1, e), (z1, f) = (
            attempt(evaluate, method, 0.5**level, x) for x in (y, y + move)
        )

        def decision(theta, y, y1, e):
            scale, size = ladder.measure(*(jnp.asarray(x) for x in (y, y1, e)))
            return float(theta * scale - size)

        apart = float(np.linalg.norm(move))
        found = {"growth": float(np.linalg.norm(z1 - y1))}
        for key, theta in (
            ("accept", 1.0),
            ("double", ladder.theta(method.order(None))),
        ):
            here = decision(theta, y, y1, e)
            found[key] = abs(decision(theta, y + move, z1, f) - here)
        for key, value in found.items():
            bound = float(getattr(table, key)[level])
            worst[key] = max(worst[key], value / apart / bound)
    assert max(worst.values()) <= 1
    # They are no empty claims; of a pair with large weights of both signs, nearly.
    assert worst["growth"] > (0.02 if name == "tsit5" else 0.2)


def test_constants_of_cocoercive_fields_are_sharper():
    ladder = LadderController(0.0, 1e-3)
    for method, hl, plain, sharp in (
        (METHODS["heun"], 2.0, 4.0, 2.0),
        (METHODS["bosh3"], 1.6, 1.83, 0.53),
    ):
        free = jnode.Bounds(hl)
        flow = jnode.Bounds(hl, (-hl, 0.0), 1 / hl)
        for bounds, expected in ((free, plain), (flow, sharp)):
            found = table_of(bounds, method, ladder, 10)
            assert float(found.accept[0]) == pytest.approx(expected, rel=0.02)
            assert float(found.accept[0]) >= expected * 0.98
        assert float(found.growth[0]) < 1.001


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ortho", "ortho, 2 segments"])
def test_no_prediction_changes_where_grids_do(kind):
    """In float32; the images split over several grids."""
    solver = Solver("heun", rtol=1e-3, atol=1e-3, controller="ladder", max_steps=64)
    moved_images = 0
    for seed in range(3):
        model = model_of(kind, solver, jr.key(seed))
        images = 1.5 * jr.normal(jr.key(10 + seed), (12, 4, 4, 1))
        atol = jnp.quantile(first_errors(model, images), 0.5)
        tolerances = jnp.stack([0.05 * atol, atol])
        proven = certified(model, tolerances, images)
        assert jnp.sum(proven.radii > 0) >= 10
        for mode in range(3):
            keys = jr.split(jr.key(mode), 12)
            inputs = (model, tolerances, images, 0.999 * proven.radii)
            changed, moved = attacked(*inputs, jnp.asarray(mode), keys)
            assert not jnp.any(changed)
            moved_images += int(jnp.sum(moved))
    assert moved_images > 3


def test_a_radius_that_is_attained(x64):
    """In one dimension, where decisions change as fast as they can: a radius that were
    2 % larger would be refuted."""
    # From 0, one step of Heun ends at 0.9 with e = 0.1, and two steps end at 0.97. The
    # classes part at 0.94, and e grows by D = hL + (hL)^2 / 2 = 0.625 with the pixel.
    model = fold_model(0.102, 0.94)
    flip = 0.002 / 0.625
    radius = float(certify.radius(model, jnp.zeros((1, 1, 1, 1)))[0])
    assert 0.999 * flip < radius <= flip
    walked = jax.jit(lambda pixel: embedded(model, jnp.full((1, 1, 1), pixel)))
    ends, attempts = [], []
    for pixel in (0.0, 0.999 * radius, 1.02 * radius):
        features, record = walked(pixel)
        ends.append(float(features[0]))
        attempts.append(int(jnp.sum(record["going"])))
        assert int(jnp.argmax(model(jnp.full((1, 1, 1), pixel)))) == (ends[-1] < 0.94)
    assert attempts == [1, 1, 3]
    assert ends[0] < 0.94 and ends[1] < 0.94 < ends[2]


@pytest.mark.slow
def test_caps_only_lower_radii(getkey, monkeypatch):
    solver = Solver("heun", rtol=3e-2, atol=3e-2, controller="ladder")
    model, bounds = jnode.resolve(model_of("ortho", solver, getkey()))
    images = 1.5 * jr.normal(getkey(), (12, 4, 4, 1))

    def radii():
        return np.asarray(
            jax.jit(lambda x: adaptive_radii(model, bounds, x))(images)[0]
        )

    whole = radii()
    assert np.all(whole > 0)
    for name, value in (("ATTEMPTS", 6), ("WIDTH", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(paths, name, value)
            less = radii()
        assert np.all(less <= whole * (1 + 1e-4))
        assert name != "ATTEMPTS" or np.any(less < 0.9 * whole)


@pytest.mark.slow
def test_radius_of_a_model(getkey):
    solver = Solver("bosh3", rtol=1e-2, atol=1e-2, controller="halving")
    model = small_model(getkey(), "gradient_flow", solver, segments=(2,), position=True)
    images = jr.uniform(getkey(), (5, 8, 8, 1))
    found = certify.radius(model, images)
    assert certify.refusal(model) is None and jnp.isinf(model.lipschitz())
    assert jnp.all(found > 0)
    frozen = certify.radius(model.freeze(images[0]), images)
    assert jnp.all(found <= frozen * 1.05) and jnp.any(found > 0.5 * frozen)
    labels = np.asarray(jnp.argmax(jax.vmap(model)(images), axis=1))
    np.testing.assert_allclose(
        certify.certified_radii(model, images, labels), found, rtol=1e-4
    )
    # Another controller of the same solver still has no certificate.
    other = model.with_solver(Solver("bosh3", rtol=1e-2, atol=1e-2))
    assert jnp.all(certify.radius(other, images) == 0)
    free = small_model(getkey(), "free", solver)
    assert "no Lipschitz constant" in (certify.refusal(free) or "")
    assert jnp.all(certify.radius(free, images) == 0)


def test_too_few_steps_certify_nothing(getkey):
    solver = Solver("heun", rtol=1e-4, atol=1e-4, controller="ladder", max_steps=3)
    model = small_model(getkey(), "ortho", solver)
    images = jr.uniform(getkey(), (3, 8, 8, 1))
    assert jnp.all(certify.radius(model, images) == 0)


def test_balls_are_merged_into_one_that_holds_both(getkey):
    zero = jnp.zeros((), jnp.int32)
    for _ in range(20):
        states, slack = jr.normal(getkey(), (2, 7)), jr.uniform(getkey(), (2,)) * 3
        one, other = (
            paths.Nodes(y, s, jnp.asarray(1.0), s, paths.Rung(zero, zero), zero)
            for y, s in zip(states, slack, strict=True)
        )
        both = paths.merge_balls(one, other)
        for node in (one, other):
            apart = np.linalg.norm(np.float64(both.state) - np.float64(node.state))
            assert apart + float(node.slack) <= float(both.slack)
        apart = np.linalg.norm(np.float64(states[0]) - np.float64(states[1]))
        least = max(float(jnp.max(slack)), (apart + float(jnp.sum(slack))) / 2)
        assert float(both.slack) <= least * 1.0001
        assert float(both.entry) == float(jnp.min(slack))


@pytest.mark.slow
def test_both_types(getkey):
    """A radius in float64 is at least that of float32, whose rounding costs more."""
    solver = Solver("heun", rtol=3e-2, atol=3e-2, controller="ladder")
    model = small_model(getkey(), "ortho", solver)
    images = jr.uniform(getkey(), (4, 8, 8, 1))
    short = np.asarray(certify.radius(model, images))
    with jax.enable_x64(True):
        wide = lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x
        model, images = jax.tree.map(wide, (model, images))
        long = np.asarray(certify.radius(model, images))
    assert long.dtype == np.float64
    np.testing.assert_allclose(short, long, atol=2e-3)
    assert np.all(short <= long * (1 + 1e-6))
