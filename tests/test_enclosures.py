"""Nothing that a model computes in a ball leaves its enclosure, and it is no wider."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode.certify.enclosures import Arithmetic, Enclosure
from jnode.certify.interpreter import enclose
from jnode.fields import Decay
from jnode.solvers import SOLVERS
from tests.helpers import dense_matrix, slow_but

PROOF = Arithmetic()


def ball(centre, radius, arithmetic=PROOF):
    return arithmetic.opened(Enclosure(centre, jnp.full_like(centre, radius)))


def interval(function, centre, radius, arithmetic=PROOF):
    """The centre and the half-widths of what `function` gives around each centre."""

    @jax.jit
    def run(centre):
        found = enclose(arithmetic, function, ball(centre, radius, arithmetic))
        return found.centre, arithmetic.reach(found)

    return (np.asarray(x, np.float64) for x in run(centre))


def excess(function, centre, radius, key, corners=40):
    """The largest distance from the centre over what is allowed, among points."""
    middle, reach = interval(function, centre, radius)
    call, worst = jax.jit(jax.vmap(function)), 0.0
    for k in jr.split(key, corners):
        moves = jr.uniform(k, centre.shape, centre.dtype, -1, 1)
        for move in (jnp.sign(moves), moves):
            out = np.asarray(call(centre + radius * move), np.float64)
            worst = max(worst, float(np.max(np.abs(out - middle) / reach)))
    return worst


def states(key, shape, number=3):
    return jr.normal(key, (number, *shape))


def shaken(tree, key, size=0.3):
    """With biases, clocks and the like that are not 0."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jr.split(key, len(leaves))
    move = lambda x, k: (
        x + size * jr.normal(k, x.shape, x.dtype) if eqx.is_inexact_array(x) else x
    )
    return jax.tree.unflatten(structure, map(move, leaves, keys))


DENSE, GRID = (6,), (3, 3, 4)
FIELDS = {
    "ortho": lambda k: jnode.OrthoField(DENSE, lipschitz=2.0, time=True, key=k),
    "learnable": lambda k: jnode.OrthoField(DENSE, learnable=True, hidden=3, key=k),
    "circular": lambda k: jnode.OrthoField(GRID, key=k),
    "zero": lambda k: jnode.OrthoField(
        GRID, constraint="rescaled", padding="zero", key=k
    ),
    "flow": lambda k: jnode.GradientFlowField(DENSE, potentials=2, decay=0.5, key=k),
    "skew": lambda k: jnode.SkewField(DENSE, damping=0.3, key=k),
    "hamiltonian": lambda k: jnode.HamiltonianField(DENSE, key=k),
    "free": lambda k: jnode.FreeField(DENSE, time=True, key=k),
    "free conv": lambda k: jnode.FreeField(GRID, key=k),
    "group norm": lambda k: jnode.FreeField(GRID, group_norm=True, time=True, key=k),
    "sum": lambda k: 0.5 * jnode.OrthoField(DENSE, key=k) - Decay(0.5),
    "segments": lambda k: jnode.PiecewiseField(
        [jnode.FreeField(DENSE, key=x) for x in jr.split(k, 2)]
    ),
}


@pytest.mark.parametrize("name", slow_but(FIELDS, "ortho", "group norm", "segments"))
def test_no_point_leaves_a_solve(name, getkey):
    field = jnode.resolve(shaken(FIELDS[name](getkey()), getkey()))[0]
    shape = GRID if name in ("circular", "zero", "free conv", "group norm") else DENSE
    solver = jnode.Solver("euler", steps=2 if name == "segments" else 1)
    end = lambda y: jnode.solve(field, y, solver).y
    # Group norm divides by a spread that may be all but 0 in a larger ball.
    radius = 1e-3 if name == "group norm" else 0.02
    worst = excess(end, states(getkey(), shape), radius, getkey())
    assert 0.01 < worst <= 1


@pytest.mark.parametrize(
    "name", slow_but([x for x in SOLVERS if x != "dopri8"], "heun")
)
def test_every_tableau(name, getkey):
    field = jnode.FreeField((3,), time=True, key=getkey())
    field = jnode.resolve(shaken(field, getkey()))[0]
    end = lambda y: jnode.solve(field, y, jnode.Solver(name, steps=1)).y
    worst = excess(end, states(getkey(), (3,)), 0.01, getkey())
    assert 0.05 < worst <= 1


@pytest.mark.parametrize(
    "activation", slow_but(jnode.activations.ACTIVATIONS, "relu", "groupsort")
)
def test_every_activation(activation, getkey):
    sigma = jnode.activations.make_activation(activation, 8)
    sigma = shaken(sigma, getkey())
    centre = states(getkey(), (8,), 20)
    assert 0.7 < excess(sigma, centre, 0.4, getkey()) <= 1


def test_double_precision(getkey, x64):
    field = jnode.FreeField(DENSE, activation="tanh", time=True, key=getkey())
    field = jnode.resolve(shaken(field, getkey()))[0]
    solver = jnode.Solver("rk4", steps=1)
    end = lambda y: jnode.solve(field, y, solver).y
    y = states(getkey(), DENSE)
    assert y.dtype == jnp.float64
    assert 0.1 < excess(end, y, 0.01, getkey()) <= 1
    _, reach = interval(end, y, 0.0)
    assert np.max(reach) < 1e-12


def test_elementary_functions_and_products(getkey):
    functions = {
        "silu": jax.nn.silu,
        "gelu": lambda x: jax.nn.gelu(x, approximate=True),
        "norm": lambda x: x / jnp.sqrt(jnp.sum(x**2) + 1),
        "wave": lambda x: jnp.sin(x) * jnp.exp(-jnp.abs(x)),
        "largest": lambda x: x - jnp.max(x),
        # Of one operation or of several, depending on the version of JAX.
        "parts": lambda x: jnp.stack([a * b for a, b in zip(x, x[::-1], strict=True)]),
        "log2": lambda x: jnp.log2(jnp.abs(x) + 0.5),
        "slope": jax.vmap(jax.grad(jnp.tanh)),
        "cubic": lambda x: jnp.polyval(jnp.array([1.0, 2.0, -1.0, 0.5]), x),
        "tenth": lambda x: jnp.polyval(jnp.linspace(-1.0, 1.0, 11), x / 2),
    }
    for name, function in functions.items():
        worst = excess(function, states(getkey(), (5,)), 0.1, getkey())
        assert 0.05 < worst <= 1, name


@pytest.mark.parametrize("shape", [(3, 3, 2), (5,)])
def test_linear_maps_are_composed_before_they_widen(shape, getkey):
    """A spectral convolution is three products, whose absolute values explode."""
    field = jnode.OrthoField(shape, hidden=shape[-1], key=getkey())
    map_ = jnode.resolve(field)[0].first
    matrix = dense_matrix(map_, shape)
    centre = states(getkey(), shape, 1)
    _, reach = interval(map_, centre, 0.1)
    exact = 0.1 * np.sum(np.abs(matrix), axis=1).reshape(1, *shape)
    np.testing.assert_array_less(exact * (1 - 1e-6), reach)
    np.testing.assert_array_less(reach, exact * (1 + 1e-3))
    # So a width 2 % smaller is refuted by a corner.
    middle, _ = interval(map_, centre, 0.1)
    row = np.sign(matrix[0]).reshape(1, *shape)
    out = np.asarray(jax.vmap(map_)(centre + 0.1 * jnp.asarray(row, centre.dtype)))
    assert np.abs(out - middle).ravel()[0] > 0.98 * reach.ravel()[0]


def test_what_cancels_is_not_counted(getkey):
    def nothing(x):
        return (x + 1) - x

    _, reach = interval(nothing, states(getkey(), (4,)), 1.0)
    assert np.max(reach) < 1e-4


def test_radius_0_encloses_the_exact_result(getkey):
    """Rounding alone: float32 and float64 both lie inside, and it is not wide."""
    field = jnode.FreeField(DENSE, activation="softplus", key=getkey())
    field = jnode.resolve(shaken(field, getkey()))[0]
    solver = jnode.Solver("euler", steps=2)
    y = states(getkey(), DENSE)
    end = lambda y: jnode.solve(field, y, solver).y
    middle, reach = interval(end, y, 0.0)
    short = np.asarray(jax.vmap(end)(y), np.float64)
    with jax.enable_x64(True):
        exact = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64) if eqx.is_inexact_array(x) else x,
            field,
        )
        long = jax.vmap(lambda y: jnode.solve(exact, y, solver).y)
        truth = np.asarray(long(jnp.asarray(np.asarray(y, np.float64))))
    assert np.all(np.abs(short - middle) <= reach)
    assert np.all(np.abs(truth - middle) <= reach)
    assert 0 < np.max(np.abs(truth - short)) < np.max(reach) < 1e-3


def test_what_may_be_nan_is_unbounded(getkey):
    """A bounded function of NaN is NaN, and bounded functions of numbers are not."""

    def direction(x):
        return x / jnp.sqrt(jnp.sum(x**2))

    makers = {
        "log": jnp.log,
        "log1p": lambda x: jnp.log1p(x - 1),
        "sqrt": jnp.sqrt,
        "0 / 0": direction,
        "0 * inf": lambda x: x * jnp.exp(1e3 * x),
        "inf - inf": lambda x: jnp.exp(1e3 * x) - jnp.exp(2e3 * x),
    }
    bounded = {
        "tanh": jnp.tanh,
        "sigmoid": jax.nn.sigmoid,
        "erf": jax.lax.erf,
        "exp(-x^2)": lambda x: jnp.exp(-(x**2)),
        "sin": jnp.sin,
        "clip": lambda x: jnp.clip(x, -1, 1),
        "sort": lambda x: jnp.sort(jnp.tanh(x)),
        "twice": lambda x: jnp.tanh(jnp.tanh(x) + 1),
        "zero": lambda x: 0 * jnp.tanh(x),
        "select": lambda x: jnp.where(x > 0, 1.0, jnp.tanh(x)),
    }
    safe, unsafe = (jnp.full((1, 3), x) for x in (0.5, 0.05))
    for made, maker in makers.items():
        for name, function in bounded.items():
            whole = lambda x, f=function, g=maker: f(g(x))
            _, reach = interval(whole, unsafe, 0.1)
            assert not np.isfinite(reach).any(), (made, name)
            if made not in ("0 * inf", "inf - inf"):
                _, reach = interval(whole, safe, 0.1)
                assert np.isfinite(reach).all(), (made, name)


def test_pools_sums_and_largest_entries(getkey):
    functions = {
        "largest": eqx.nn.MaxPool2d(2, 2),
        "mean": eqx.nn.AvgPool2d(3, 1, padding=1),
        "adaptive": eqx.nn.AdaptiveAvgPool2d(2),
        "running sum": lambda x: jnp.cumsum(x, axis=1),
        "running largest": lambda x: jax.lax.cummax(x, axis=1),
        "tiles": lambda x: jnp.tile(x, (2, 1, 1)),
    }
    for name, function in functions.items():
        centre = states(getkey(), (2, 4, 4), 2)
        assert 0.7 < excess(function, centre, 0.1, getkey()) <= 1, name


def test_what_has_no_rule_is_refused_by_name(getkey):
    with pytest.raises(ValueError, match="'cumprod'"):
        enclose(PROOF, jnp.cumprod, ball(jnp.zeros((1, 3)), 0.1))
    field = jnode.OrthoField(DENSE, key=getkey())
    low = jnode.LowPrecisionField(jnode.resolve(field)[0])
    with pytest.raises(ValueError, match="bfloat16"):
        enclose(PROOF, lambda y: low(0.0, y), ball(jnp.zeros((1, *DENSE)), 0.1))

    def turns(x):
        return jax.lax.cond(x[0] > 0, lambda x: x, lambda x: -x, x)

    with pytest.raises(ValueError, match="branch"):
        enclose(PROOF, turns, ball(jnp.zeros((1, 3)), 0.1))


def test_loops_over_what_depends_on_the_input(getkey):
    """Rows of an image, one after another: the ball is in each of them."""
    centre = states(getkey(), (4, 3))

    def rows(x):
        return jax.lax.map(lambda row: jnp.tanh(2 * row) + row, x)

    def recurrence(x):
        return jax.lax.scan(lambda s, row: (0.5 * s + row, s * row), x[0], x)[1]

    for function in (rows, recurrence):
        assert 0.2 < excess(function, centre, 0.1, getkey()) <= 1
    _, reach = interval(rows, centre, 0.1)
    slope = np.asarray(3 - 2 * np.tanh(2 * np.asarray(centre)) ** 2)
    assert np.all(reach > 0.05 * slope)


def test_reshapes_in_the_order_of_fortran(getkey):
    """They exchange axes, and with them the widths of the pixels' intervals."""
    centre = states(getkey(), (2, 3))
    widths = jnp.arange(1.0, 7).reshape(1, 2, 3) * jnp.ones_like(centre)
    x = PROOF.opened(Enclosure(centre, widths))
    for function in (
        lambda x: jnp.ravel(x, order="F"),
        lambda x: jnp.reshape(x, (3, 2), order="F"),
    ):
        found = enclose(PROOF, function, x)
        expected = np.asarray(jax.vmap(function)(widths))
        np.testing.assert_allclose(PROOF.reach(found), expected, rtol=1e-5)


def test_products_that_underflow(getkey):
    """Sums of products that become 0 one by one, and together would not."""
    del getkey
    tiny = float(jnp.finfo(jnp.float32).tiny)
    centre = jnp.full((1, 144), 0.5)
    weight = jnp.full((144,), 1.3 * tiny)
    found = enclose(PROOF, lambda x: x @ weight, ball(centre, 0.5))
    low, high = (np.asarray(x, np.float64) for x in PROOF.ends(found))
    exact = 144 * float(weight[0])
    assert low[0] <= 0 and high[0] >= exact


def test_only_branches_that_raise_are_left_out(getkey):
    del getkey

    def checked(x):
        return eqx.error_if(2 * x, jnp.any(x > 100), "too large")

    found = enclose(PROOF, checked, ball(jnp.ones((1, 3)), 0.1))
    np.testing.assert_allclose(PROOF.reach(found), 0.2, rtol=1e-5)

    def called(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        call = lambda x: jax.pure_callback(lambda v: -v, shape, x)
        return jax.lax.cond(x[0] > 1, lambda x: x, call, x)

    with pytest.raises(ValueError, match="branch"):
        enclose(PROOF, called, ball(jnp.ones((1, 3)), 0.1))


def test_what_a_gather_fills_in(getkey):
    """It is the same number in each image: neither a width nor a correlation."""
    centre = states(getkey(), (4,))
    index = jnp.array([2, 0, 9, 1])
    for function in (
        lambda x: jnp.take(x, index, mode="fill", fill_value=-1.0),
        lambda x: jnp.tanh(x).at[index].get(mode="fill", fill_value=7.0),
    ):
        assert excess(lambda x, f=function: 2 * f(x) - x, centre, 0.1, getkey()) <= 1
        _, reach = interval(function, centre, 0.1)
        assert np.all(reach[:, 2] < 1e-5) and np.all(reach[:, [0, 1, 3]] > 1e-4)


def test_a_sort_of_what_is_unbounded(getkey):
    """Where one number may be anything, so may those at the ends, and no other."""
    del getkey

    def ordered(x):
        pole = x[:1] / (x[:1] - 0.5)
        return jnp.sort(jnp.concatenate([pole, jnp.array([1.0, 2.0, 3.0])])) ** 2

    low, high = PROOF.ends(enclose(PROOF, ordered, ball(jnp.full((1, 2), 0.6), 0.2)))
    assert low[0, 0] <= 0 and jnp.all(high[0, jnp.array([0, 3])] == jnp.inf)
    np.testing.assert_allclose(low[0, 1:3], [1, 4], rtol=1e-5)
    np.testing.assert_allclose(high[0, 1:3], [4, 9], rtol=1e-5)


def test_softmax(getkey):
    def attention(x):
        weights = jax.nn.softmax(x @ x.T / 2)
        return weights @ x

    assert 0.05 < excess(attention, states(getkey(), (3, 2)), 0.05, getkey()) <= 1


REFUSED = {
    "from float32 to bfloat16": lambda x: jnp.matmul(
        x, jnp.eye(3), preferred_element_type=jnp.bfloat16
    ).astype(jnp.float32),
    "less than full precision": lambda x: jnp.matmul(
        x, jnp.eye(3), precision="default"
    ),
    "dot_general in less than full precision": lambda x: jnp.matmul(
        x, jnp.eye(3), precision=jax.lax.DotAlgorithmPreset.BF16_BF16_F32
    ),
    "scan over comparisons": lambda x: jax.lax.map(
        lambda b: jnp.where(b, 1.0, 2.0), x > 0.5
    ),
    "no rule": lambda x: x + jr.normal(jr.key(0), (3,)),
}


@pytest.mark.parametrize("words", REFUSED)
def test_other_refusals_are_clear(words):
    with pytest.raises(ValueError, match=words):
        enclose(PROOF, REFUSED[words], ball(jnp.ones((1, 3)), 0.1))


def test_transforms_of_weights_are_rounded(getkey):
    """Complex numbers too, for which there are no rules."""
    weight = jr.normal(getkey(), (3,))
    with pytest.raises(ValueError, match="no rule"):
        enclose(
            PROOF, lambda x: x * jnp.fft.fft(weight).real, ball(jnp.ones((1, 3)), 0.1)
        )
