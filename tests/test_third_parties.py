"""Methods, states and modules that nobody here has thought of."""

import dataclasses
from typing import ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode.solvers import solve_batch, trajectory
from tests.helpers import slow_but


class Kutta3(diffrax.AbstractERK):
    """Kutta's method of order 3, with Euler's for the error: Diffrax has no such."""

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        c=np.array([0.5, 1.0]),
        a_lower=(np.array([0.5]), np.array([-1.0, 2.0])),
        b_sol=np.array([1, 4, 1]) / 6,
        b_error=np.array([1, 4, 1]) / 6 - np.array([1, 0, 0]),
    )
    interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        return 3


def test_a_tableau_of_somebody_else(getkey, x64):
    """Solved by the fast path with its order, and certified by its coefficients."""
    field = jnode.OrthoField((4,), activation="tanh", lipschitz=2.0, key=getkey())
    field, y0 = field.bake(), jr.normal(getkey(), (4,))
    best = jnode.solve(field, y0, jnode.Solver("dopri8", steps=16)).y
    ends = [jnode.solve(field, y0, Kutta3(), steps=n) for n in (4, 8)]
    first, second = (float(jnp.linalg.norm(end.y - best)) for end in ends)
    assert ends[0].stats["nfe"] == 12 and 2.5 < np.log2(first / second) < 3.7
    bound = jnode.amplification(field, Kutta3(), steps=4)
    end = lambda y: jnode.solve(field, y, Kutta3(), steps=4).y
    assert np.linalg.norm(jax.jacobian(end)(y0), 2) <= bound < np.exp(2) * 1.5
    control = diffrax.PIDController(rtol=1e-6, atol=1e-6)
    adaptive = jnode.solve(field, y0, Kutta3(), stepsize_controller=control)
    np.testing.assert_allclose(adaptive.y, best, atol=1e-4)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Pendulum:
    """A state that is neither an array nor a module."""

    angle: jax.Array
    rates: dict


def swing(t, y, args):
    return Pendulum(y.rates["angle"], {"angle": -args * y.angle})


@pytest.mark.parametrize(
    "solver",
    slow_but(
        [
            jnode.Solver("rk4", steps=8),
            jnode.Solver("tsit5", rtol=1e-5),
            jnode.Solver("bosh3", rtol=1e-3, atol=1e-4, controller="ladder"),
        ],
        jnode.Solver("rk4", steps=8),
    ),
    ids=str,
)
def test_a_state_of_somebody_else(solver):
    """Alone and in a batch; its gradient is of its kind."""
    start = Pendulum(jnp.ones(2), {"angle": jnp.zeros(2)})

    @jax.jit
    def end(y):
        return jnode.solve(swing, y, solver, args=1.0).y

    found = end(start)
    assert isinstance(found, Pendulum)
    np.testing.assert_allclose(found.angle, np.full(2, np.cos(1)), atol=2e-3)
    np.testing.assert_allclose(found.rates["angle"], np.full(2, -np.sin(1)), atol=2e-3)
    slope = jax.grad(lambda y: jnp.sum(end(y).angle))(start)
    assert isinstance(slope, Pendulum)
    np.testing.assert_allclose(slope.angle, np.full(2, np.cos(1)), atol=2e-2)
    whole = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), start)
    both = solve_batch(swing, whole, solver, args=1.0).y
    np.testing.assert_allclose(both.angle[0], found.angle, atol=1e-5)


class Scaled:
    """A field of a class that JAX knows nothing of but its children."""

    def __init__(self, inner, factor):
        self.inner, self.factor = inner, factor

    def __call__(self, t, y, args):
        return self.factor * self.inner(t, y)


jax.tree_util.register_pytree_node(
    Scaled,
    lambda s: ((s.inner, s.factor), None),
    lambda _, children: Scaled(*children),
)


def test_a_field_of_somebody_else(getkey):
    """Certified by what it holds, resolved in place, solved, trained."""
    inner, y0 = jnode.OrthoField((4,), key=getkey()), jr.normal(getkey(), (4,))
    claim = lambda fn: jnp.abs(fn.factor) * fn.inner.bounds().lipschitz
    make = lambda factor: jnode.Certified(
        Scaled(inner, jnp.asarray(factor)), lambda fn: jnode.Bounds(claim(fn))
    )
    field, solver = make(-2.0), jnode.Solver("heun", steps=2)
    assert field.lipschitz() == pytest.approx(2, rel=1e-3)
    plain, bounds = jnode.resolve(field)
    assert isinstance(plain.fn, Scaled)
    assert bounds.lipschitz == pytest.approx(float(field.lipschitz()), rel=1e-3)
    ends = [jnode.solve(f, y0, solver).y for f in (field, plain)]
    np.testing.assert_allclose(*ends, atol=1e-6)
    np.testing.assert_allclose(trajectory(field, y0, solver)[1][-1], ends[0], atol=1e-6)
    same = jnode.solve(-2.0 * inner, y0, solver).y
    np.testing.assert_allclose(ends[0], same, atol=1e-6)
    grads = eqx.filter_grad(lambda f: jnp.sum(jnode.solve(f, y0, solver).y ** 2))(field)
    assert jnp.abs(grads.fn.factor) > 0
    end = lambda y: jnode.solve(plain, y, solver).y
    largest = np.linalg.norm(jax.jacobian(end)(y0), 2)
    assert largest <= jnode.amplification(plain, solver) * (1 + 1e-5)
