"""Certificates where numbers are extreme, mixed or claimed wrongly."""

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
from jnode import Bounds, certify
from jnode.certify.rounding import ROUNDING, head_allowance, rounding
from jnode.constraints import constrained
from jnode.fields import Decay
from jnode.linear import Dense, SpectralConv, spectral_norm
from jnode.models import Flatten, Head, Lift, Linear, ODEBlock
from tests.helpers import singular_values, slow_but, small_model


@pytest.mark.parametrize("shape", slow_but([(4,), (3, 4, 4)], (3, 4, 4)))
@pytest.mark.parametrize(
    ("scale", "log_q"),
    [(1e-5, -69.0), (1e-9, -50.0), (1e-12, 30.0), (1e-14, 0.0), (1e3, 5.0)],
)
def test_sll_keeps_its_norm_whatever_its_weights(getkey, shape, scale, log_q):
    map_ = constrained(shape, 4, constraint="sll", key=getkey())
    shrunk = jax.tree.map(lambda w: scale * w, map_)
    for q in (jnp.full(4, log_q), jnp.asarray([log_q, 0.0, -log_q, log_q])):
        extreme = eqx.tree_at(lambda m: m.constraint.log_q, shrunk, q)
        plain, bound = jnode.resolve(extreme)
        assert singular_values(plain, shape)[0] <= float(bound) <= 1 + 1e-4


def test_envelopes_at_integer_times():
    field = jnode.Certified(lambda t, y, args: 0.9 * y, Bounds(0.9))
    for envelope in (certify.gronwall, certify.log_norm_envelope):
        found = envelope(field, jnp.asarray([0, 1, 2]))
        exact = np.exp(0.9 * np.arange(3))
        assert (found >= exact * (1 - 1e-6)).all()
        assert found == pytest.approx(exact, rel=1e-4)
        with pytest.raises(TypeError, match="float32 or float64"):
            envelope(field, jnp.asarray([0, 1], jnp.bfloat16))


def test_envelopes_of_terms_that_cancel(getkey):
    gain = lambda f: Bounds(jnp.abs(f.gain), (f.gain, f.gain))
    rates = [2e4, -1.7e4, -2.9e3]
    field = jnode.PiecewiseField(
        [jnode.Certified(Gain(jnp.asarray(rate)), gain) for rate in rates]
    )
    envelope = certify.log_norm_envelope(field, jnp.asarray([0.0, 1.0]))
    assert float(jnp.log(envelope[-1])) >= sum(rates) / 3


class Gain(eqx.Module):
    gain: jax.Array | float

    def __call__(self, t, y, args):
        return self.gain * y


def test_steps_of_very_different_lengths(x64):
    """A contraction is not overstated, nor the growth of short steps understated."""
    exact = lambda rate, ts: float(np.abs(np.prod(1 + rate * np.diff(ts))))
    for width, rate in ((4e-10, 1e5), (6e-10, -1e5)):
        ts = [0.0, *(width * i for i in range(1, 1001)), 1.0]
        ends = (rate, rate)
        bounds = Bounds(1e5, ends, 1e-5 if rate < 0 else 0.0)
        found = float(jnode.amplification(bounds, diffrax.Euler(), ts=ts))
        assert exact(rate, ts) <= found <= 1.01 * exact(rate, ts)
    for field in (Decay(0.5), -0.5 * (-1.0 * Decay(1.0))):
        bound = float(jnode.amplification(field, jnode.Solver("euler", steps=2)))
        assert 0.75**2 <= bound <= 0.75**2 * (1 + 1e-5)


def test_a_constant_that_vanishes_gives_no_nan(getkey):
    model = jnode.ODEClassifier(
        (
            Lift((4, 4, 1), patch=2, features=4),
            ODEBlock(Decay(16.0), jnode.Solver("euler", steps=16)),
        ),
        Head(16, 3, unit_norm=True, key=getkey()),
        (4, 4, 1),
    )
    images = jr.uniform(getkey(), (2, 4, 4, 1))
    assert model.lipschitz() > 0
    for radius in (certify.radius, certify.local_radius):
        assert jnp.isfinite(radius(model, images)).all()


def test_large_biases_count_in_the_rounding(getkey):
    """Inner sums err relative to the biases, though these cancel in the end."""
    field = jnode.OrthoField(
        (2, 2, 4), constraint="rescaled", kernel_size=1, key=getkey()
    )
    large = eqx.tree_at(lambda f: f.first_bias, field, jnp.full(4, 1e5))
    back = -large(0.0, jnp.zeros((2, 2, 4)))[0, 0]
    large = eqx.tree_at(lambda f: f.second_bias, large, back)
    parts = (
        Lift((4, 4, 1), patch=2, features=4),
        Head(16, 3, unit_norm=True, key=getkey()),
    )
    solver = jnode.Solver("euler", steps=2)
    make = lambda f: jnode.ODEClassifier(
        (parts[0], ODEBlock(f, solver)), parts[1], (4, 4, 1)
    )
    images = jr.uniform(getkey(), (50, 4, 4, 1))
    assert (certify.radius(make(field), images) > 0).mean() > 0.8
    assert (certify.radius(make(large), images) == 0).all()
    assert (certify.local_radius(make(large), images[:4]) == 0).all()
    assert ROUNDING * 1e5 > 0.5  # which is why


def test_claims_that_hold_numbers_of_their_own_are_refused():
    claim = jax.tree_util.Partial(lambda bound, fn: Bounds(bound), jnp.asarray(3.0))
    with pytest.raises(ValueError, match="function of fn alone"):
        jnode.Certified(lambda t, y, args: 3 * y, bounds=claim)
    with pytest.raises(ValueError, match="numbers that may change"):
        jnode.Certified(Gain(3.0), bounds=Bounds(3.0))


def test_contradictions_under_jit_certify_nothing(getkey):
    forgot = jnode.Certified(Gain(jnp.asarray(-0.5)), lambda fn: Bounds(fn.gain))
    with pytest.raises(ValueError, match="lipschitz must be at least 0"):
        forgot.lipschitz()
    solver = jnode.Solver("euler", steps=1)
    amplify = eqx.filter_jit(lambda f: jnode.amplification(f, solver))
    assert amplify(forgot) == jnp.inf
    model = eqx.tree_at(lambda m: m.blocks[0].field, small_model(getkey()), forgot)
    assert (certify.radius(model, jr.uniform(getkey(), (3, 8, 8, 1))) == 0).all()


@pytest.mark.parametrize(
    ("claim", "error"),
    [
        (lambda: Bounds(1.0, (-jnp.inf, -jnp.inf)), ValueError),
        (lambda: Bounds(1.0, (jnp.inf, jnp.inf)), ValueError),
        (lambda: Bounds(1j), TypeError),
        (lambda: 1e40 * Bounds(1.0), ValueError),
        (lambda: 1e-46 * Bounds(1.0), ValueError),
    ],
)
def test_what_is_no_bound(claim, error):
    with pytest.raises(error):
        claim()


def test_integers_are_not_rounded_down():
    assert float(Bounds(jnp.asarray(16777217, jnp.int32)).lipschitz) >= 16777217


def test_an_overflow_tells_nothing(getkey):
    matrix = jr.normal(getkey(), (4, 4))
    for scale in (1e19, 1e20, jnp.inf):
        assert spectral_norm(scale * matrix) >= 1e19


def test_what_has_no_bounds_is_refused_by_name(getkey):
    solver = jnode.Solver("rk4", steps=1)
    bare: Any = lambda t, y, args: y
    for refused in (
        lambda: jnode.amplification(bare, solver),
        lambda: certify.gronwall(bare, jnp.asarray([0.0, 1.0])),
    ):
        with pytest.raises(TypeError):
            refused()
    for t1 in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="t1 must be a finite number"):
            jnode.amplification(Bounds(1.0), solver, t1=t1)


def test_integer_arrays_of_a_field_do_not_matter(getkey):
    class Turned(eqx.Module):
        order: jax.Array

        def __call__(self, t, y, args):
            return y[..., self.order]

    turned = Turned(jnp.asarray([1, 0, 3, 2]))
    field = jnode.Certified(turned, bounds=lambda fn: Bounds(1.0))
    model = eqx.tree_at(lambda m: m.blocks[0].field, small_model(getkey()), field)
    assert (certify.radius(model, jr.uniform(getkey(), (8, 8, 8, 1))) > 0).any()


def test_pieces_of_ones_own_and_of_no_arrays(getkey):
    claim = lambda fn: Bounds(jnp.abs(fn.gain))
    segments = [jnode.Certified(Gain(jnp.asarray(-x)), claim) for x in (0.5, 1.0)]
    field = jnode.PiecewiseField(segments)
    assert field.lipschitz() == 1
    end = jnode.solve(field, jnp.ones(2), jnode.Solver("rk4", steps=4)).y
    assert end == pytest.approx(np.exp(-0.75), rel=1e-4)
    assert jnode.PiecewiseField([Decay(1.0), Decay(1.0)]).lipschitz() == pytest.approx(
        1
    )
    other = jnode.Certified(Gain(jnp.asarray(1.0)), lambda fn: Bounds(1.0))
    with pytest.raises(ValueError, match="alike but for their"):
        jnode.PiecewiseField([segments[0], other])


@pytest.mark.parametrize(
    "constraint", slow_but(["cayley", "rescaled", "sll"], "cayley")
)
def test_members_of_an_ensemble_inside_a_module(getkey, constraint):
    class Mean(eqx.Module):
        fields: jnode.OrthoField

        def __call__(self, t, y, args):
            return jnp.mean(eqx.filter_vmap(lambda f: f(t, y))(self.fields), axis=0)

    make = lambda k: jnode.OrthoField((4,), constraint=constraint, key=k)
    keys = jr.split(getkey(), 3)
    whole = Mean(eqx.filter_vmap(make)(keys))
    solver, y0 = jnode.Solver("euler", steps=1), jr.normal(getkey(), (4,))
    found = jnode.solve(whole, y0, solver).y - y0
    members = jnp.stack([make(k)(0.0, y0) for k in keys])
    assert jnp.abs(found - members.mean(axis=0)).max() < 1e-5


@pytest.mark.slow
def test_local_radii_of_mixed_types(getkey, x64):
    with jax.enable_x64(False):
        single = small_model(getkey(), "ortho", lipschitz=1.0)
    double = jax.tree.map(
        lambda w: w.astype(jnp.float64) if eqx.is_inexact_array(w) else w, single
    )
    images = jr.uniform(getkey(), (2, 8, 8, 1), jnp.float32)
    found = [
        certify.local_radius(model, x)
        for model in (single, double)
        for x in (images, images.astype(jnp.float64))
    ]
    for radii in found:
        assert radii == pytest.approx(np.asarray(found[0]), rel=1e-6)


def test_bytes_are_no_pixels(getkey):
    model = small_model(getkey())
    images = jnp.zeros((2, 8, 8, 1), jnp.uint8)
    for call in (lambda: model(images[0]), lambda: jnode.batched(model)(images)):
        with pytest.raises(TypeError):
            call()


class Mean(jnode.AbstractVectorField):
    """A field whose value is one number, which NumPy would spread over the state."""

    def __call__(self, t, y, args=None):
        return jnp.mean(y)[None]

    def bounds(self):
        return Bounds(0.25)


@pytest.mark.parametrize("options", [{}, {"saveat": diffrax.SaveAt(t1=True)}])
@pytest.mark.parametrize("make", [lambda f: f, lambda f: f + Decay(0.0)])
def test_values_are_not_spread_over_the_state(make, options):
    for solver in (
        jnode.Solver("euler", steps=2),
        jnode.Solver("euler", steps=2, adjoint="checkpointed"),
        jnode.Solver("bosh3"),
    ):
        with pytest.raises(ValueError, match=r"the state's shape \(16,\), not \(1,\)"):
            jnode.solve(make(Mean()), jnp.ones(16), solver, **options)


@pytest.mark.parametrize("size", [3136, 8192])
def test_sums_of_the_head_are_within_their_allowance(size):
    """All terms of a sum are alike, and so are their rounding errors."""
    head = Head(size, 2, unit_norm=False, key=jr.key(0))
    weight = jnp.stack([jnp.full(size, w, jnp.float32) for w in (0.7, 0.70003)])
    head = eqx.tree_at(lambda h: h.weight, head, weight)
    values = np.linspace(0.43, 0.45, 64, dtype=np.float32)
    features = np.broadcast_to(values[:, None], (64, size)).copy()
    run = eqx.filter_jit(lambda head, x: jax.vmap(head)(x))
    logits = np.asarray(run(head, jnp.asarray(features)), np.float64)
    exact = features.astype(np.float64) @ np.asarray(weight, np.float64).T
    error = np.abs((logits - exact) @ [1, -1])
    norms = [jnp.linalg.norm(x) for x in features]
    allowed = [head_allowance(head, norm, jnp.asarray(0))[1] for norm in norms]
    assert (error < 0.9 * np.asarray(allowed)).all()
    assert error.max() > 2e-6 * float(2 * 0.7 * size**0.5 * norms[0])


def test_allowances_grow_with_steps_and_with_what_multiplies_biases(getkey):
    field = jnode.OrthoField((4,), key=getkey())
    timed = jnode.OrthoField((4,), time=True, key=getkey())
    head = Head(4, 2, unit_norm=True, key=getkey())

    def model(field, steps=1, t0=0.0, t1=1.0):
        block = ODEBlock(field, jnode.Solver("rk4", steps=steps), t0, t1)
        return jnode.ODEClassifier([Flatten(), block], head, (2, 2, 1))

    assert rounding(model(field, 25)) == ROUNDING
    assert rounding(model(field, 1000)) == pytest.approx(40 * ROUNDING)
    wide = Linear(Dense(jnp.ones((4, 10**5))))
    long = dataclasses.replace(model(field), layers=[wide, *model(field).layers])
    assert rounding(long) == pytest.approx(ROUNDING * 1e5 / 8192)

    def gain(field, **options):
        return float(model(field, **options).bounds().bias_gains[1])

    assert gain(field) == pytest.approx(1, rel=1e-3)
    assert gain(field, t1=50.0) == pytest.approx(50, rel=1e-3)
    assert gain(1e5 * field - Decay(1.0)) == pytest.approx(1e5, rel=1e-3)
    assert gain(timed, t0=1e3, t1=1e3 + 1) == pytest.approx(1e3, rel=1e-2)
    thin = eqx.tree_at(lambda f: f.second.matrix, field.bake(), replace_fn=_hundredfold)
    assert gain(thin) == pytest.approx(100, rel=1e-3)


def _hundredfold(x):
    return 100 * x


def test_stages_outside_of_a_step_are_refused_at_jumps(getkey):
    class Ahead(diffrax.AbstractERK):
        tableau = diffrax.ButcherTableau(
            c=np.array([2.0]),
            b_sol=np.array([0.75, 0.25]),
            b_error=np.zeros(2),
            a_lower=(np.array([2.0]),),
        )
        interpolation_cls = (
            diffrax.ThirdOrderHermitePolynomialInterpolation.from_k  # pyright: ignore
        )

        def order(self, terms):
            return 2

    parts = [jnode.OrthoField((2,), key=k) for k in jr.split(getkey(), 2)]
    field, y = jnode.PiecewiseField(parts), jnp.ones(2)
    inside = jnode.solve(field, y, Ahead(), steps=2).y
    assert jnp.isfinite(inside).all()
    with pytest.raises(ValueError, match=r"times of its stages are \[0.0, 2.0\]"):
        jnode.solve(field, y, Ahead(), steps=2, saveat=diffrax.SaveAt(t1=True))


def test_envelopes_of_late_times():
    """The second time is 1 after the first, and float32 rounds both to one number."""
    field = jnode.Certified(lambda t, y, args: y, Bounds(1.0))
    for envelope in (certify.gronwall, certify.log_norm_envelope):
        assert float(envelope(field, np.asarray([1e8, 1e8 + 1]))[1]) >= np.e
        late = np.asarray([2020.0, 2020.00001])
        assert float(envelope(field, late)[1]) >= np.exp(1e-5)


def test_squares_that_underflow(getkey):
    slow = 1e-23 * Decay(1.0)
    assert float(slow.cocoercivity()) <= 1e23
    found = jnode.amplification(1e-19 * Decay(1.0), diffrax.Euler(), t1=1.5e19, steps=1)
    assert float(found) >= 0.5
    options: dict = {"lipschitz": 1e20, "damping": 1e-20, "activation": "leaky_relu"}
    field = jnode.SkewField((2,), key=getkey(), **options).bake()
    turn = jnp.asarray([[0.0, 1e-20], [-1e-20, 0.0]])
    field = eqx.tree_at(lambda f: f.half.matrix, field, turn)
    jacobian = jax.jacobian(lambda y: field(0.0, y))(jnp.asarray([0.0, 1.0]))
    jacobian = np.asarray(jacobian, np.float64)
    largest = np.linalg.eigvalsh((jacobian + jacobian.T) / 2)[-1]
    assert float(field.log_norm()) >= largest > 0
    assert (
        float(jnode.amplification(Decay(1e30), diffrax.Euler(), t1=1e15, steps=1)) > 1
    )


def test_static_numbers_that_were_set_by_hand(getkey):
    flow = jnode.GradientFlowField((4,), key=getkey())
    object.__setattr__(flow, "decay", -0.5)
    with pytest.raises(ValueError, match="decay must be a finite number of at least 0"):
        flow.lipschitz()
    real = jnp.ones((10, 2, 2))
    with pytest.raises(ValueError, match="margin must be at least 0"):
        SpectralConv(real, real, (4, 4), margin=-1)


def test_formulas_may_read_what_an_operator_holds():
    """A user's own bound from the matrix of one of this package's operators."""

    class Turned(eqx.Module):
        map: Dense

        def __call__(self, t, y, args=None):
            return self.map(y)

    turned = Turned(Dense(2 * jnp.eye(4)))
    field = jnode.Certified(turned, lambda fn: Bounds(spectral_norm(fn.map.matrix)))
    assert float(field.lipschitz()) == pytest.approx(2, rel=1e-3)
    found = float(jnode.amplification(field, diffrax.Euler(), steps=1))
    assert found == pytest.approx(3, rel=1e-3)
