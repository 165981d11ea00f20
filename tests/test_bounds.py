"""The bounds of a field as a value, and its algebra."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode import Bounds
from jnode.fields import Composed, Congruent, Decay, LowPrecisionField
from jnode.linear import Dense, LowPrecision
from tests.helpers import slow_but
from tests.test_fields import BOUNDED, FIELDS


def numbers(bounds):
    return [float(x) for x in (bounds.lipschitz, *bounds.log_norm, bounds.cocoercivity)]


def test_what_the_lipschitz_constant_alone_tells():
    assert numbers(Bounds(2.0)) == [2, -2, 2, 0]
    assert numbers(Bounds(jnp.inf)) == [np.inf, -np.inf, np.inf, 0]
    assert numbers(Bounds(0.0)) == [0, 0, 0, 0]


def test_a_negative_log_norm_makes_a_field_cocoercive():
    assert numbers(Bounds(2.0, (-2.0, -1.0)))[3] == pytest.approx(0.25, rel=1e-5)


def test_numbers_are_rounded_up_to_float32():
    for value in (0.7, 0.1, 1 / 3, 1e30):
        assert float(Bounds(value).lipschitz) >= value
        low, high = Bounds(jnp.inf, (-value, value)).log_norm
        assert float(high) >= value and float(low) <= -value


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (lambda: Bounds(-1.0), "lipschitz must be at least 0"),
        (lambda: Bounds(float("nan")), "lipschitz must be at least 0"),
        (lambda: Bounds(1.0, (0.5, -0.5)), "a lower and an upper bound"),
        (lambda: Bounds(1.0, (-1.0, float("nan"))), "a lower and an upper bound"),
        (lambda: Bounds(1.0, (-3.0, -2.0)), "within -lipschitz and lipschitz"),
        (lambda: Bounds(1.0, (-1.0, 2.0)), "within -lipschitz and lipschitz"),
        (lambda: Bounds(2.0, cocoercivity=1.0), "at most 1 / lipschitz"),
        (lambda: Bounds(2.0, cocoercivity=-1.0), "at least 0"),
        (lambda: jnp.inf * Bounds(2.0), "factor must be finite"),
    ],
)
def test_contradictions_are_refused(claim, message):
    with pytest.raises(ValueError, match=message):
        claim()


def test_half_precision_is_refused():
    with pytest.raises(TypeError, match="float32 or float64"):
        Bounds(jnp.ones((), jnp.bfloat16))


def test_algebra_on_paper():
    near = lambda x: pytest.approx(x, rel=1e-5, abs=1e-6)
    a, b = Bounds(2.0, (-2.0, 0.0), 0.5), Bounds(3.0, (-1.0, 3.0))
    assert numbers(a + b) == near([5, -3, 3, 0])
    assert numbers(a + a) == near([4, -4, 0, 0.25])
    assert numbers(3 * a) == near([6, -6, 0, 1 / 6])
    assert numbers(-a) == near([2, 0, 2, 0])
    assert numbers(-2 * b) == near([6, -6, 2, 0])
    assert numbers(0 * Bounds(jnp.inf)) == [0, 0, 0, 0]
    assert numbers(a @ b) == near([6, -6, 6, 0])
    assert numbers(a.congruence(jnp.asarray(2.0))) == near([8, -8, 0, 0.125])
    # A field that expands at a rate of 1 at least contracts backward.
    assert numbers(-Bounds(2.0, (1.0, 2.0))) == near([2, -2, -1, 0.25])


def test_unknown_times_zero_is_zero():
    unknown, nothing = jnp.asarray(jnp.inf), Bounds(0.0)
    assert numbers(nothing.congruence(unknown)) == [0, 0, 0, 0]
    assert numbers(Bounds(jnp.inf) @ nothing) == [0, 0, 0, 0]
    flow = Bounds(1.0, (-1.0, 0.0), 1.0).congruence(unknown)
    assert numbers(flow) == [np.inf, -np.inf, 0, 0]
    assert numbers(nothing + nothing)[:3] == [0, 0, 0]


def test_bounds_that_were_not_numbers_are(getkey):
    """An unknown map under a flow, and fields that stand still."""
    flow = jnode.GradientFlowField((4,), key=getkey())
    unknown = LowPrecision(Dense(jr.normal(getkey(), (4, 4))), "bfloat16")
    assert Congruent(flow, unknown).log_norm() == 0
    still = (Decay(0.0) + Decay(0.0)).bounds()
    assert all(np.isfinite(numbers(still)))
    nothing = Composed(LowPrecisionField(flow), Decay(0.0))
    assert nothing.lipschitz() == 0


@pytest.mark.parametrize("name", slow_but(BOUNDED, "ortho", "skew", "sum"))
def test_all_bounds_hold_in_both_directions_of_time(getkey, x64, name):
    field = FIELDS[name]((6,), getkey())
    field = jax.tree.map(lambda w: w.astype(jnp.float32), field).bake()
    forward, backward = (numbers(f.bounds()) for f in (field, -1.5 * field))
    exact = jax.tree.map(lambda w: w.astype(jnp.float64), field)
    for _ in range(5):
        y = 2 * jr.normal(getkey(), (6,))
        jacobian = np.asarray(jax.jacobian(lambda y: exact(0.4, y))(y))
        for factor, (lipschitz, low, high, _) in ((1, forward), (-1.5, backward)):
            j = factor * jacobian
            assert np.linalg.norm(j, 2) <= lipschitz + 1e-12
            eigenvalues = np.linalg.eigvalsh((j + j.T) / 2)
            assert low - 1e-12 <= eigenvalues[0] <= eigenvalues[-1] <= high + 1e-12


def test_lower_log_norms_on_paper(getkey):
    near = lambda x: pytest.approx(x, rel=1e-2, abs=1e-6)
    make = lambda kind, **options: float(
        kind((4,), key=getkey(), **options).bounds().log_norm[0]
    )
    assert make(jnode.GradientFlowField, lipschitz=3.0, decay=0.5) == near(-3.5)
    assert make(jnode.SkewField, lipschitz=2.0) == near(-1.0)
    damped = make(jnode.SkewField, damping=3.0, activation="leaky_relu")
    assert damped == near(-0.3 - 0.45 * (10**0.5 + 3))
    hamiltonian = make(jnode.HamiltonianField)
    assert hamiltonian == near(-0.5 - 0.5 * (2**0.5 + 1))
