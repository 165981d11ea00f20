"""Certificates: no search ever exceeds them."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode import certify
from jnode.certify import (
    amplification,
    circle_contractivity_radius,
    lipschitz_lower_bound,
    step_amplification,
)
from jnode.certify.rounding import ROUNDING
from jnode.fields import Decay
from jnode.solvers import SOLVERS
from tests.helpers import slow_but, small_model

# Computed by hand from the criterion, and listed by Sherry et al. for the simple ones.
RADII = {
    "euler": 1.0,
    "heun": 1.0,
    "rk4": 1.0,
    "bosh3": 0.899,
    "midpoint": 0.0,
    "tsit5": 0.0,
    "dopri5": 0.0,
    "dopri8": 0.0,
}


@pytest.mark.parametrize("name", SOLVERS)
def test_circle_contractivity_radius(name):
    assert circle_contractivity_radius(name) == pytest.approx(RADII[name], abs=1e-3)


def test_rk4_step_is_below_the_exponential():
    for hl in (0.1, 0.5, 2.0):
        bound = float(step_amplification("rk4", 1.0, jnode.Bounds(hl)))
        series = sum(hl**k / np.prod(range(1, k + 1)) for k in range(5))
        assert series <= bound <= series * (1 + 1e-4)
        assert bound <= np.exp(hl) * (1 + 1e-4)


@pytest.mark.parametrize("name", ["euler", "heun", "rk4", "bosh3"])
def test_contractive_up_to_the_radius_and_not_beyond(name):
    r = circle_contractivity_radius(name)
    flow = jnode.Bounds(1.0, (-1.0, 0.0), 1.0)
    bound = lambda h: float(step_amplification(name, h, flow))
    assert bound(2 * r * 0.999) <= 1 + 1e-5
    assert bound(2 * r * 1.2) > 1.05


@pytest.mark.parametrize("steps", slow_but([1, 3], 3))
@pytest.mark.parametrize("name", slow_but(["euler", "rk4", "tsit5"], "rk4"))
@pytest.mark.parametrize("kind", slow_but(["ortho", "flow"], "flow"))
def test_no_search_exceeds_the_certificate(getkey, x64, kind, name, steps):
    make = jnode.OrthoField if kind == "ortho" else jnode.GradientFlowField
    solver = jnode.Solver(name, steps=steps)
    for lipschitz in (0.7, 2.0 * steps, 6.0):
        field = make((2, 3, 4), lipschitz=lipschitz, key=getkey())
        field = jax.tree.map(lambda w: w.astype(jnp.float32), field).bake()
        bound = float(amplification(field, solver))
        exact = jax.tree.map(lambda w: w.astype(jnp.float64), field)
        f = lambda y: jnode.solve(exact, y, solver).y
        start = jr.normal(getkey(), (2, 3, 4))
        found = lipschitz_lower_bound(jax.jit(f), start, key=getkey())
        assert 0 < found <= bound


def explicit(a_lower, b_sol):
    """A tableau of somebody else's method."""
    a_lower = tuple(np.asarray(row, float) for row in a_lower)
    return diffrax.ButcherTableau(
        c=np.asarray([row.sum() for row in a_lower]),
        b_sol=np.asarray(b_sol, float),
        b_error=np.zeros(len(b_sol)),
        a_lower=a_lower,
    )


SSPRK33 = explicit([[1], [1 / 4, 1 / 4]], [1 / 6, 1 / 6, 2 / 3])
SSPRK43 = explicit(
    [[1 / 2], [1 / 2, 1 / 2], [1 / 6, 1 / 6, 1 / 6]], [1 / 6, 1 / 6, 1 / 6, 1 / 2]
)
KUTTA3 = explicit([[1 / 2], [-1, 2]], [1 / 6, 2 / 3, 1 / 6])
THREE_EIGHTHS = explicit(
    [[1 / 3], [-1 / 3, 1], [1, -1, 1]], [1 / 8, 3 / 8, 3 / 8, 1 / 8]
)


METHODS = {
    "euler": (diffrax.Euler(), 1.0),
    "ralston": (diffrax.Ralston(), 0.791),
    "heun": (diffrax.Heun(), 1.0),
    "midpoint": (diffrax.Midpoint(), 0.0),
    "bosh3": (diffrax.Bosh3(), 0.899),
    "ssprk33": (SSPRK33, 1.0),
    "ssprk43": (SSPRK43, 2.0),
    "kutta3": (KUTTA3, 0.5),
    "three eighths": (THREE_EIGHTHS, 0.464),
}


@pytest.mark.parametrize("name", slow_but(METHODS, "ralston", "ssprk43"))
def test_any_explicit_tableau_is_certified(getkey, x64, name):
    method, radius = METHODS[name]
    assert circle_contractivity_radius(method) == pytest.approx(radius, abs=1e-3)
    for make in (jnode.OrthoField, jnode.GradientFlowField):
        field = make((4,), lipschitz=2.0, key=getkey())
        field = jax.tree.map(lambda w: w.astype(jnp.float32), field).bake()
        bound = float(amplification(field, method, steps=2))
        alone = float(amplification(field.bounds(), method, steps=2))
        assert bound == pytest.approx(alone, rel=1e-6)
        exact = jax.tree.map(lambda w: w.astype(jnp.float64), field)
        a, b, c = jnode.solvers.tableau(method)

        def step(y, h, exact=exact):
            ks = []
            for i in range(len(b)):
                inner = sum((a[i, j] * ks[j] for j in range(i)), start=0 * y)
                ks.append(exact(c[i] * h, y + h * inner))
            return y + h * sum(w * k for w, k in zip(b, ks, strict=True))

        f = jax.jit(lambda y: step(step(y, 0.5), 0.5))
        start = jr.normal(getkey(), (4,))
        assert 0.5 < lipschitz_lower_bound(f, start, key=getkey()) <= bound
        if isinstance(method, diffrax.AbstractSolver):
            solved = jnode.solve(exact, start, method, steps=2).y
            assert jnp.abs(solved - f(start)).max() < 1e-12


def test_what_is_no_explicit_method_is_refused(getkey):
    field = jnode.OrthoField((4,), key=getkey())
    for method in (diffrax.Kvaerno3(), diffrax.LeapfrogMidpoint()):
        with pytest.raises(TypeError, match=type(method).__name__):
            amplification(field, method, steps=2)
    with pytest.raises(ValueError, match="steps or ts must be given"):
        amplification(field, diffrax.Heun())
    with pytest.raises(ValueError, match="left out beside"):
        amplification(field, jnode.Solver("heun", steps=2), steps=2)
    for ts in ([0.0, 0.5], [0.0, 0.6, 0.5, 1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="ts must increase from t0 = 0"):
            amplification(field, diffrax.Heun(), ts=ts)


def test_unequal_steps_of_a_diffrax_solver(getkey):
    field = jnode.GradientFlowField((4,), lipschitz=4.0, key=getkey())
    ts = [0.0, 0.1, 0.5, 1.0]
    grid = jnode.Solver("heun", grid=tuple(ts))
    bound = amplification(field, diffrax.Heun(), ts=ts)
    assert bound == pytest.approx(float(amplification(field, grid)), rel=1e-6)


BACKWARD = {
    "flow": lambda k: jnode.GradientFlowField((8,), key=k),
    "flow decaying": lambda k: jnode.GradientFlowField((8,), decay=1.0, key=k),
    "skew": lambda k: jnode.SkewField((8,), lipschitz=2.0, damping=0.5, key=k),
    "hamiltonian": lambda k: jnode.HamiltonianField((8,), key=k),
    "sum": lambda k: jnode.OrthoField((8,), key=k) + Decay(1.0),
    "segments": lambda k: jnode.PiecewiseField(
        [jnode.GradientFlowField((8,), key=k_) for k_ in jr.split(k, 2)]
    ),
}


@pytest.mark.parametrize("name", slow_but(["euler", "rk4"], "euler"))
@pytest.mark.parametrize("kind", slow_but(BACKWARD, "segments"))
def test_backward_solves_are_certified(getkey, x64, kind, name):
    """By the field of reversed time, in which a contraction expands."""
    solver = jnode.Solver(name, steps=8)
    field = BACKWARD[kind](getkey())
    field = jax.tree.map(lambda w: w.astype(jnp.float32), field).bake()
    exact = jax.tree.map(lambda w: w.astype(jnp.float64), field)
    bounds = {}
    for t0, t1 in ((0.0, 1.0), (1.0, 0.0)):
        bounds[t0] = float(amplification(field, solver, t0=t0, t1=t1))
        f = jax.jit(
            lambda y, t0=t0, t1=t1: jnode.solve(exact, y, solver, t0=t0, t1=t1).y
        )
        y = jr.normal(getkey(), (8,))
        jacobian = np.asarray(jax.jacobian(f)(y))
        largest = max(
            np.linalg.norm(jacobian, 2),
            float(lipschitz_lower_bound(f, y, key=getkey(), steps=200)),
        )
        assert largest <= bounds[t0]
        assert bounds[t0] <= 4 * largest
    assert bounds[1.0] > 1.4 * bounds[0.0]
    for bound in (
        amplification(field, solver, t0=0.5, t1=0.5),
        amplification(field, diffrax.Heun(), steps=3, t0=1.0, t1=1.0),
    ):
        assert bound == pytest.approx(1, abs=1e-5) and bound >= 1


def test_bound_is_tight_for_a_linear_flow(getkey):
    # Where relu never switches, the flow is linear and Euler reaches its bound.
    field = jnode.OrthoField((4,), lipschitz=2.0, key=getkey())
    for name, steps in (("euler", 1), ("euler", 4)):
        solver = jnode.Solver(name, steps=steps)
        bound = float(amplification(field, solver))
        assert bound == pytest.approx((1 + 2.0 / steps) ** steps, rel=1e-3)


def test_long_searches_do_not_end_in_rounding(getkey):
    # Once the difference has shrunk, cancellation alone can make the ratio large.
    q, _ = jnp.linalg.qr(jr.normal(getkey(), (32, 32)))
    start = jr.uniform(getkey(), (32,))
    found = lipschitz_lower_bound(lambda y: q @ y + 30, start, key=getkey(), steps=400)
    assert found == pytest.approx(1, abs=1e-3)


def test_whole_model_never_exceeds_its_lipschitz_bound(getkey):
    for field in ("ortho", "gradient_flow"):
        model = small_model(getkey(), field, lipschitz=2.0).bake()
        image = jr.uniform(getkey(), (8, 8, 1))
        found = lipschitz_lower_bound(
            jax.jit(lambda x: model.embed(x)), image, key=getkey(), steps=40
        )
        assert found <= float(model.lipschitz()) * (1 + 1e-4)


def test_no_attack_inside_the_radius(getkey):
    model = small_model(getkey(), lipschitz=2.0).bake()
    images = jr.uniform(getkey(), (32, 8, 8, 1))
    predictions = jnp.argmax(jax.vmap(model)(images), axis=1)
    radii = certify.radius(model, images)
    assert (radii > 0).mean() > 0.9
    assert not misled(model, images, predictions, 0.999 * radii, getkey()).any()
    # The attack is not toothless.
    assert misled(model, images, predictions, 3 * radii, getkey()).any()


def test_float32_rounding_is_within_the_allowance(getkey, x64):
    model = small_model(getkey(), lipschitz=2.0)
    cast = lambda dtype: jax.tree.map(lambda w: w.astype(dtype), model.bake())
    single, double = cast(jnp.float32), cast(jnp.float64)
    images = jr.uniform(getkey(), (64, 8, 8, 1)).astype(jnp.float32)
    with jax.enable_x64(False):
        features = np.asarray(jax.vmap(single.embed)(images), np.float64)
    exact = jax.vmap(double.embed)(images.astype(jnp.float64))
    error = jnp.linalg.norm(features - exact, axis=1)
    size = 1 + jnp.linalg.norm(exact, axis=1)
    assert (error / size).max() < ROUNDING / 10


def test_adaptive_and_free_models_get_no_certificate(getkey):
    images = jr.uniform(getkey(), (3, 8, 8, 1))
    adaptive = small_model(getkey(), solver=jnode.Solver("tsit5"))
    free = small_model(getkey(), "free")
    assert "chooses its steps" in (certify.refusal(adaptive) or "")
    assert "unconstrained" in (certify.refusal(free) or "")
    assert certify.refusal(small_model(getkey())) is None
    for model in (adaptive, free):
        assert model.lipschitz() == jnp.inf
        assert (certify.radius(model, images) == 0).all()


@pytest.mark.slow
def test_contraction_counts(getkey, x64):
    """With a negative logarithmic norm, small steps are certified to contract."""
    field = jnode.GradientFlowField((6,), lipschitz=1.0, decay=1.0, key=getkey())
    field = jax.tree.map(lambda w: w.astype(jnp.float32), field).bake()
    for name in ("euler", "heun", "rk4"):
        solver = jnode.Solver(name, steps=20)
        bound = float(amplification(field, solver))
        assert np.exp(-1) < bound < 0.5
        exact = jax.tree.map(lambda w: w.astype(jnp.float64), field)
        f = jax.jit(lambda y, s=solver: jnode.solve(exact, y, s).y)
        assert (
            lipschitz_lower_bound(f, jr.normal(getkey(), (6,)), key=getkey()) <= bound
        )


@pytest.mark.parametrize("field", slow_but(["ortho", "skew", "hamiltonian"], "ortho"))
def test_no_attack_inside_the_local_radius(getkey, field):
    options = {"activation": "tanh"} if field == "ortho" else {}
    solver = jnode.Solver("rk4", steps=2)
    model = small_model(getkey(), field, solver, lipschitz=3.0, **options).bake()
    images = jr.uniform(getkey(), (12, 8, 8, 1))
    predictions = jnp.argmax(jax.vmap(model)(images), axis=1)
    radii = certify.radius(model, images)
    local = eqx.filter_jit(certify.local_radius)(model, images)
    assert (local >= radii * (1 - 1e-5)).all()
    if field == "ortho":
        assert (local > 1.1 * radii).any()
    assert not misled(model, images, predictions, 0.999 * local, getkey()).any()
    # The attack is not toothless.
    assert misled(model, images, predictions, 4.0, getkey()).any()


def misled(model, images, predictions, epsilon, key):
    """Of which images an attack within L2 balls of these radii changes the class."""
    attack, budget = jnode.attacks.PGD(steps=30), jnode.attacks.Budget("l2", epsilon)
    moved = attack(jnode.batched(model), images, predictions, budget, key=key)
    return jnp.argmax(jax.vmap(model)(moved), axis=1) != predictions


def test_frozen_model_is_certified(getkey):
    model = small_model(getkey(), solver=jnode.Solver("bosh3"))
    image = jr.uniform(getkey(), (8, 8, 1))
    frozen = model.freeze(image)
    assert certify.refusal(model) is not None and certify.refusal(frozen) is None
    assert jnp.abs(frozen(image) - model(image)).max() < 1e-4
    assert (certify.radius(frozen, image[None]) > 0).all()
    assert (certify.local_radius(model, image[None]) == 0).all()


def test_estimate_stays_below_the_bound(getkey):
    field = jnode.OrthoField((6,), lipschitz=2.0, key=getkey())
    states = jr.normal(getkey(), (20, 6))
    estimate = float(certify.estimate_lipschitz(field, states, key=getkey()))
    jacobians = jax.vmap(jax.jacobian(lambda y: field(0.0, y)))(states)
    exact = float(jnp.linalg.norm(jacobians, ord=2, axis=(1, 2)).max())
    assert estimate == pytest.approx(exact, rel=0.02)
    assert estimate <= float(field.lipschitz())


def test_envelopes(getkey):
    times = jnp.linspace(0.0, 1.0, 3)
    field = jnode.GradientFlowField((4,), lipschitz=2.0, key=getkey())
    assert certify.gronwall(field, times)[-1] == pytest.approx(np.exp(2), rel=1e-2)
    assert (certify.log_norm_envelope(field, times) == 1).all()
    # Backward the flow expands; and times do not turn back.
    back = certify.log_norm_envelope(field, times[::-1])
    assert back[-1] == pytest.approx(np.exp(2), rel=1e-2)
    assert certify.gronwall(field, times[::-1])[-1] == pytest.approx(
        np.exp(2), rel=1e-2
    )
    for envelope in (certify.gronwall, certify.log_norm_envelope):
        with pytest.raises(ValueError, match="increase or decrease"):
            envelope(field, jnp.asarray([0.0, 1.0, 0.5]))


def test_certified_accuracy_counts_right_predictions_only():
    radii = np.asarray([-1.0, 0.0, 0.4, 0.6], np.float32)
    rows = certify.certified_accuracy(radii, [0.0, 0.5])
    assert [row["certified_accuracy"] for row in rows] == [0.75, 0.25]
    with pytest.raises(ValueError, match="radius must be at least 0"):
        certify.certified_accuracy(radii, [-0.1])
