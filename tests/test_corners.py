"""Certificates where numbers are extreme, mixed or claimed wrongly."""

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
from jnode.certify.rounding import ROUNDING
from jnode.constraints import constrained
from jnode.fields import Decay
from jnode.linear import spectral_norm
from jnode.models import Head, Lift, ODEBlock
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
