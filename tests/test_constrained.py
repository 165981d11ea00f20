"""Constrained maps: their bounds are facts, checked by dense SVD in float64."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jnode
from jnode import certify
from jnode.constraints import (
    CONSTRAINTS,
    AbstractConstraint,
    constrained,
    plain,
)
from jnode.linear import Dense, Product, SpaceToDepth, gram_iteration, spectral_norm
from jnode.linear.gram import isometry_norm, isometry_residual, real_column
from tests.helpers import dense_matrix, singular_values, slow_but

SHAPES = [((16,), 16), ((5,), 9), ((9,), 5), ((4, 5, 3), 4)]


def make(constraint, shape, out, padding="circular", scale=1.0, *, key):
    map_ = constrained(shape, out, constraint=constraint, padding=padding, key=key)
    return jax.tree.map(lambda w: scale * w, map_)


def no_reparametrisation(function, *args):
    """No loop, root or division is left: only products and sums."""
    text = str(jax.make_jaxpr(function)(*args))
    return not any(f" {name}" in text for name in ("while", "scan", "sqrt", "div"))


@pytest.mark.parametrize(
    ("shape", "out", "scale"),
    slow_but(
        [(*SHAPES[0], 1e-2), (*SHAPES[1], 30.0), (*SHAPES[2], 1.0), (*SHAPES[3], 30.0)],
        (*SHAPES[3], 30.0),
        unpack=True,
    ),
)
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_norm_is_certified(getkey, constraint, shape, out, scale):
    map_ = make(constraint, shape, out, scale=scale, key=getkey())
    baked = plain(map_)
    values = singular_values(baked, shape)
    bound = float(map_.norm())
    assert 0.1 < values[0] <= bound <= 1 + 2e-3
    x = jr.normal(getkey(), shape)
    assert jnp.abs(map_(x) - baked(x)).max() < 1e-6
    assert no_reparametrisation(baked, x)
    # The transpose is the transpose, and both agree with the dense reference.
    forward = dense_matrix(baked, shape)
    y = baked(x)
    assert np.abs(forward @ np.asarray(x, np.float64).ravel() - y.ravel()).max() < 1e-5
    back = dense_matrix(baked.T, y.shape)
    assert np.abs(back - forward.T).max() < 1e-5


@pytest.mark.parametrize("constraint", slow_but(["rescaled", "aol", "sll"], "aol"))
def test_zero_padding_is_certified_and_is_zero_padding(getkey, constraint):
    for shape, out in [((4, 5, 3), 4), ((3, 3, 4), 2)]:
        map_ = make(constraint, shape, out, "zero", key=getkey())
        assert singular_values(map_, shape)[0] <= float(map_.norm()) <= 1 + 2e-3
        # Far from the border a shifted input gives a shifted result.
        y = np.asarray(map_(jnp.ones(shape)))
        assert not np.allclose(y[0], y[1], atol=1e-3)
        corner = map_(jnp.zeros(shape).at[0, 0].set(1.0))
        assert jnp.abs(corner[2:, :]).max() == jnp.abs(corner[:, 2:]).max() == 0


@pytest.mark.slow
def test_orthogonal_maps_are_orthogonal(getkey):
    for constraint, slack in (("cayley", 1e-5), ("newton_schulz", 1e-2)):
        for shape, out in SHAPES:
            map_ = make(constraint, shape, out, key=getkey())
            values = singular_values(plain(map_), shape)
            rank = int(np.prod(shape[:-1])) * min(shape[-1], out)
            assert np.abs(values[:rank] - 1).max() < slack
            assert values[rank:].max(initial=0) < 1e-5


@pytest.mark.parametrize("constraint", ["cayley", "sll"])
@pytest.mark.slow
def test_a_stack_of_kernels_is_each_of_them(getkey, constraint):
    """Bounds too: each is of its own kernel, not of the worst."""
    build = lambda key: make(constraint, *SHAPES[3], key=key)
    stack = eqx.filter_vmap(build)(jr.split(getkey(), 3))
    found, bounds = stack.constraint.kernels(stack.weight, (4, 5), "circular")
    for i in range(3):
        alone, bound = jax.tree.map(lambda x, i=i: x[i], stack).resolve()
        assert jnp.abs(found.real[i] - alone.real).max() < 1e-6
        assert jnp.abs(found.imaginary[i] - alone.imaginary).max() < 1e-6
        assert bounds[i] == pytest.approx(float(bound), rel=1e-6)
        exact = singular_values(alone, SHAPES[3][0])[0]
        assert exact <= float(bounds[i])


@pytest.mark.slow
def test_newton_schulz_states_its_residual(getkey):
    for shape, out in (((8,), 5), ((4, 5, 3), 4)):
        map_ = plain(make("newton_schulz", shape, out, key=getkey()))
        values = singular_values(map_, shape)
        rank = int(np.prod(shape[:-1])) * min(out, shape[-1])
        worst = np.abs(values[:rank] ** 2 - 1).max()
        column = real_column(map_.matrix) if len(shape) == 1 else map_.column
        # The transforms of a convolution round too, when it is applied.
        assert worst - 1e-6 <= float(isometry_residual(column).max()) < 0.05


def test_rescaled_conv_reaches_its_bound(getkey):
    # Circular convolutions are rescaled by all but their exact norm.
    conv = make("rescaled", (6, 5, 4), 4, key=getkey())
    assert singular_values(conv, (6, 5, 4))[0] > 0.95


def test_gram_iteration_is_an_upper_bound_at_every_iteration(getkey):
    for rows, columns in [(5, 5), (3, 8), (20, 20)]:
        w = jr.normal(getkey(), (rows, columns))
        exact = np.linalg.norm(np.asarray(w, np.float64), 2)
        bounds = [float(gram_iteration(real_column(w), k)[0]) for k in range(1, 9)]
        assert all(exact <= bound for bound in bounds)
        assert bounds[-1] <= exact * 1.02
        assert bounds[3] < bounds[0]
    # Complex matrices in stacked real and imaginary parts, and matrices of zeros.
    re, im = jr.normal(getkey(), (2, 4, 6))
    exact = np.linalg.norm(np.asarray(re) + 1j * np.asarray(im), 2)
    bound = float(gram_iteration(jnp.concatenate([re, im])[None])[0])
    assert exact <= bound <= exact * 1.05
    zero = jnp.zeros((1, 4, 2))
    assert 0 <= gram_iteration(zero)[0] < 1e-3
    assert jnp.isfinite(jax.grad(lambda z: gram_iteration(z)[0])(zero)).all()


@pytest.mark.parametrize("scale", [1.0, 1 + 1e-4, 0.3, 20.0])
def test_residual_is_an_upper_bound_and_close(scale):
    # Tall, square and wide; isometries up to rounding, and scaled ones.
    rng = np.random.default_rng(0)
    for rows, columns in [(128, 32), (32, 32), (16, 64), (1500, 24)]:
        q = rng.normal(size=(rows, columns)) + 1j * rng.normal(size=(rows, columns))
        u, _, v = np.linalg.svd(q, full_matrices=False)
        q = scale * u @ v
        column = jnp.asarray(
            np.concatenate([np.real(q), np.imag(q)])[None], jnp.float32
        )
        held = np.asarray(column[0], np.float64)
        held = held[:rows] + 1j * held[rows:]
        gram = held.conj().T @ held if rows >= columns else held @ held.conj().T
        exact = np.linalg.norm(gram - np.eye(len(gram)), 2)
        found = float(jax.jit(isometry_residual)(column)[0])
        assert exact <= found
        if scale == 1:
            assert found < 3e-4


def test_residual_sees_imaginary_parts():
    # Re(Q^H Q) = I, but Q^H Q has an imaginary part, so Q is no isometry.
    re = np.eye(2)
    im = 0.1 * np.asarray([[0.0, 1.0], [0.0, 0.0]])
    q = re + 1j * im
    q = q / np.linalg.norm(q, axis=0)
    exact = np.linalg.norm(q, 2)
    column = jnp.asarray(np.concatenate([q.real, q.imag]), jnp.float32)[None]
    assert exact > 1.04
    assert float(isometry_norm(column)[0]) >= exact
    gram = q.conj().T @ q - np.eye(2)
    assert float(isometry_residual(column)[0]) >= np.linalg.norm(gram, 2)


@pytest.mark.parametrize("constraint", slow_but(CONSTRAINTS, "rescaled"))
def test_bounds_survive_training(getkey, standard_promotion, constraint):
    map_ = constrained((5, 4, 4), 6, constraint=constraint, key=getkey())
    x, target = jr.normal(getkey(), (5, 4, 4)), jr.normal(getkey(), (5, 4, 6))
    optimizer = optax.adam(0.05)

    @eqx.filter_jit
    def step(map_, state):
        loss = lambda m: jnp.sum((m(x) - target) ** 2)
        grads = eqx.filter_grad(loss)(map_)
        updates, state = optimizer.update(grads, state)
        return eqx.apply_updates(map_, updates), state

    state = optimizer.init(eqx.filter(map_, eqx.is_inexact_array))
    before = jnp.sum((map_(x) - target) ** 2)
    for _ in range(20):
        map_, state = step(map_, state)
    assert jnp.sum((map_(x) - target) ** 2) < 0.9 * before
    assert singular_values(plain(map_), (5, 4, 4))[0] <= float(map_.norm()) <= 1 + 2e-3


@pytest.mark.slow
def test_strided_orthogonal_convolution(getkey):
    map_ = constrained((2, 3, 8), 4, key=getkey()) @ SpaceToDepth(2)
    assert isinstance(map_, Product)  # whose weight is still free to be trained
    values = singular_values(plain(map_), (4, 6, 2))
    assert values.shape == (24,) and np.abs(values - 1).max() < 1e-5
    assert values[0] <= float(map_.norm()) < 1 + 1e-3
    assert map_(jnp.zeros((4, 6, 2))).shape == (2, 3, 4)
    forward = dense_matrix(plain(map_), (4, 6, 2))
    assert np.abs(dense_matrix(map_.T, (2, 3, 4)) - forward.T).max() < 1e-5
    resolved, bound = jnode.resolve(map_)
    assert float(bound) == pytest.approx(float(map_.norm()), rel=1e-6)
    assert np.abs(dense_matrix(resolved, (4, 6, 2)) - forward).max() < 1e-6


class Frobenius(AbstractConstraint):
    """A constraint of somebody else: division by the Frobenius norm."""

    def matrix(self, v):
        w = Dense(v / (jnp.sqrt(jnp.sum(v**2)) * 1.0001))
        return w, jnp.ones((), v.dtype)

    def kernel(self, k, grid, padding):
        raise ValueError("Frobenius is for matrices.")


def test_a_constraint_of_somebody_else(getkey, standard_promotion):
    """Held, trained, resolved in stacks, and certified like those of the package."""
    segments = [
        jnode.GradientFlowField(
            (4,), constraint=Frobenius(), hidden=3, activation="tanh", key=getkey()
        )
        for _ in "ab"
    ]
    field = jnode.PiecewiseField(segments)
    assert spectral_norm(plain(segments[0].weights[0]).matrix) < 1
    solver = jnode.Solver("euler", steps=2)
    resolved, bounds = jnode.resolve(field)
    assert float(bounds.lipschitz) == pytest.approx(1, rel=1e-4)
    assert jnode.amplification(field, solver) <= 1 + 1e-5
    assert any("Frobenius" in claim for claim in certify.assumptions(field))
    y = jr.normal(getkey(), (4,))
    ends = [jnode.solve(f, y, solver).y for f in (field, resolved)]
    np.testing.assert_allclose(*ends, atol=1e-6)
    weight = lambda f: f.segments.weights[0].weight
    grads = eqx.filter_grad(lambda f: jnp.sum(jnode.solve(f, y, solver).y ** 2))(field)
    assert (jnp.abs(weight(grads)).max(axis=(1, 2)) > 0).all()
    with pytest.raises(ValueError, match="Frobenius is for matrices"):
        jnode.OrthoField((3, 3, 4), constraint=Frobenius(), key=getkey())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda k: constrained((4,), 4, constraint="qr", key=k), "cayley, rescaled"),
        (
            lambda k: constrained((4, 4, 2), 2, padding="zero", key=k),
            "must be 'circular'.*not 'zero'.*rescaled, aol or sll",
        ),
        (
            lambda k: make("newton_schulz", (4, 4, 2), 2, "zero", key=k),
            "padding must be 'circular'",
        ),
        (lambda k: make("rescaled", (4, 4, 2), 2, "same", key=k), "circular, zero"),
    ],
)
def test_bad_maps(getkey, build, message):
    with pytest.raises(ValueError, match=message):
        build(getkey())
