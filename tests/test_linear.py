"""Linear maps: their norms are facts, checked by dense SVD in float64."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jnode
from jnode.constraints import Free, constrained, plain
from jnode.constraints.cayley import _eliminate, _newton_whole, cayley
from jnode.linear import (
    Conv,
    Dense,
    DepthToSpace,
    LowPrecision,
    Product,
    SpaceToDepth,
    SpectralConv,
)
from jnode.linear.conv import zero_padded
from tests.helpers import dense_matrix, singular_values, slow_but

CONVS = [
    ((7, 7), 3, 4, 4),
    ((6, 5), 5, 3, 6),
    ((4, 4), 1, 6, 3),
    ((8, 8), 3, 1, 4),
    ((2, 3), 3, 2, 2),
]
DENSE = [(8, 8), (5, 9), (9, 5), (1, 1)]


@pytest.mark.parametrize(
    ("grid", "size", "inputs", "outputs"), slow_but(CONVS, CONVS[1], unpack=True)
)
@pytest.mark.parametrize("scale", slow_but([0.0, 1.0, 100.0], 1.0))
def test_cayley_conv_is_orthogonal(getkey, grid, size, inputs, outputs, scale):
    conv = constrained((*grid, inputs), outputs, kernel_size=size, key=getkey())
    conv = jax.tree.map(lambda w: w * scale, conv)
    values = singular_values(plain(conv), (*grid, inputs))
    rank = grid[0] * grid[1] * min(inputs, outputs)
    assert np.abs(values[:rank] - 1).max() < 1e-5
    assert values[rank:].max(initial=0) < 1e-5
    bound = float(conv.norm())
    assert values.max() <= bound < 1 + 1e-3


@pytest.mark.parametrize(
    ("inputs", "outputs"), slow_but(DENSE, *DENSE[:2], unpack=True)
)
def test_cayley_dense_is_orthogonal(getkey, inputs, outputs):
    dense = constrained((inputs,), outputs, key=getkey())
    values = singular_values(plain(dense), (inputs,))
    assert np.abs(values - 1).max() < 1e-5
    assert values.max() <= float(dense.norm()) < 1 + 1e-3


@pytest.mark.parametrize("n", [5, 32])
def test_inverses_of_all_platforms_agree(getkey, n):
    # Skew-Hermitian matrices of a norm up to the cap, and semidefinite ones.
    for norm in (0.1, 1.0, 12.0):
        re, im, root = np.asarray(jr.normal(getkey(), (3, 4, n, n)))
        a = re - re.swapaxes(1, 2) + 1j * (im + im.swapaxes(1, 2))
        a = norm * a / np.linalg.norm(a, 2, axis=(1, 2), keepdims=True)
        m = np.eye(n) + a + root @ root.swapaxes(1, 2) / n
        column = np.concatenate([m.real, m.imag], axis=1).astype(np.float32)
        for invert in (_newton_whole, _eliminate):
            x = np.asarray(jax.jit(invert)(column), np.float64)
            x = x[:, :n] + 1j * x[:, n:]
            assert np.abs(m @ x - np.eye(n)).max() < 2e-5, (norm, invert)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_cayley_against_solve_and_finite_differences(x64, scale):
    keys = jr.split(jr.key(0), 3)
    v = scale * jr.normal(keys[0], (2, 6, 3))
    w = np.asarray(v)
    a = w[:, :3] + 1j * w[:, 3:]
    a = a - a.conj().swapaxes(1, 2)
    eye = np.eye(3)
    if scale <= 1:  # below the cap on |A|
        expected = np.linalg.solve(eye + a, eye - a)
        q = np.asarray(cayley(v))
        assert np.abs(q[:, :3] + 1j * q[:, 3:] - expected).max() < 1e-12
    weight = jr.normal(keys[1], v.shape)
    direction = jr.normal(keys[2], v.shape)
    f = jax.jit(lambda v: jnp.sum(cayley(v) * weight))
    slope = (f(v + 1e-6 * direction) - f(v - 1e-6 * direction)) / 2e-6
    ours = float(jnp.sum(jax.grad(f)(v) * direction))
    assert ours == pytest.approx(float(slope), rel=1e-6)


def test_bound_survives_optimiser_steps(getkey, standard_promotion):
    conv = constrained((5, 5, 4), 4, key=getkey())
    target = jr.normal(getkey(), (5, 5, 4))
    x = jr.normal(getkey(), (5, 5, 4))
    optimizer = optax.adamw(0.1)

    @eqx.filter_jit
    def step(conv, state):
        grads = eqx.filter_grad(lambda c: jnp.sum((c(x) - target) ** 2))(conv)
        updates, state = optimizer.update(grads, state, conv)
        return eqx.apply_updates(conv, updates), state

    state = optimizer.init(eqx.filter(conv, eqx.is_inexact_array))
    before = conv.weight
    for _ in range(25):
        conv, state = step(conv, state)
    assert jnp.abs(conv.weight - before).max() > 0.1
    assert np.abs(singular_values(plain(conv), (5, 5, 4)) - 1).max() < 1e-4


def free(shape, out, key, padding="circular"):
    return constrained(shape, out, constraint=Free(), padding=padding, key=key)


OPERATORS = {
    "dense": lambda k: (Dense(jr.normal(k, (3, 5))), (5,)),
    "conv": lambda k: (Conv(jr.normal(k, (3, 3, 2, 3))), (4, 5, 2)),
    "conv by frequencies": lambda k: (
        zero_padded(jr.normal(k, (3, 3, 40, 30)), (3, 3)),
        (3, 3, 40),
    ),
    "spectral": lambda k: (plain(constrained((4, 5, 2), 3, key=k)), (4, 5, 2)),
    "space to depth": lambda k: (SpaceToDepth(2), (4, 6, 3)),
    "product": lambda k: (
        plain(constrained((2, 3, 8), 4, key=k)) @ SpaceToDepth(2),
        (4, 6, 2),
    ),
    "low precision": lambda k: (
        LowPrecision(Dense(jnp.round(jr.normal(k, (3, 5)) * 8) / 8), "bfloat16"),
        (5,),
    ),
    "constrained": lambda k: (constrained((3,), 5, key=k), (3,)),
    "constrained zero": lambda k: (
        constrained((3, 3, 4), 5, constraint="rescaled", padding="zero", key=k),
        (3, 3, 4),
    ),
}


@pytest.mark.parametrize("name", slow_but(OPERATORS, "spectral", "product"))
def test_the_transpose_is_an_operator(getkey, name):
    map_, shape = OPERATORS[name](getkey())
    forward = dense_matrix(map_, shape)
    out = jax.eval_shape(map_, jnp.zeros(shape)).shape
    assert np.abs(dense_matrix(map_.T, out) - forward.T).max() < 1e-5
    assert np.abs(dense_matrix(map_.T.T, shape) - forward).max() < 1e-6
    if name not in ("conv", "low precision"):  # of which no norm is known
        exact = np.linalg.norm(forward, 2)
        # Zero padding is measured on a larger circular grid.
        slack = 1.6 if name in ("conv by frequencies", "constrained zero") else 1.3
        for norm in (map_.norm(), map_.T.norm()):
            assert exact <= float(norm) <= slack * exact
    # A batch lies before the channels.
    batch = jr.normal(getkey(), (*shape[:-1], 2, shape[-1]))
    each = [map_(batch[..., i, :]) for i in range(2)]
    np.testing.assert_allclose(map_(batch), jnp.stack(each, axis=-2), atol=1e-5)


def test_the_form_by_frequencies_is_used_where_it_pays(getkey):
    assert OPERATORS["conv by frequencies"](getkey())[0].spectral is not None
    assert zero_padded(jr.normal(getkey(), (3, 3, 2, 2)), (16, 16)).spectral is None


@pytest.mark.parametrize(
    ("outer", "inner", "kind"),
    [
        ("dense 3x4", "dense 4x5", Dense),
        ("circular", "circular", SpectralConv),
        ("circular", "zero", Product),
        ("zero", "zero", Product),
        ("short 4x4", "short 4x4", LowPrecision),
        ("short 4x4", "dense 4x5", Product),
        ("dense 4x4 held", "dense 4x5", Product),
        ("circular", "blocks", Product),
    ],
)
def test_products(getkey, outer, inner, kind):
    def make(name):
        conv = lambda padding: plain(free((2, 3, 4), 4, getkey(), padding))
        if name in ("circular", "zero"):
            return conv(name)
        if name == "blocks":
            return SpaceToDepth(1)
        sizes = [int(n) for n in name.split()[1].split("x")]
        dense = Dense(jr.normal(getkey(), sizes))
        if "held" in name:
            return constrained((sizes[1],), sizes[0], key=getkey())
        return LowPrecision(dense, "bfloat16") if "short" in name else dense

    first, second = make(inner), make(outer)
    shape = (5,) if "x5" in inner else (4,) if "x4" in inner else (2, 3, 4)
    both = second @ first
    assert type(both) is kind
    expected = dense_matrix(lambda x: second(first(x)), shape)
    close = 0.1 if "short" in outer else 1e-5
    assert np.abs(dense_matrix(both, shape) - expected).max() < close
    if "short" not in outer:
        assert np.linalg.norm(expected, 2) <= float(both.norm())


def test_products_of_other_grids_stay_apart(getkey):
    one, other = (plain(free((n, 3, 2), 2, getkey())) for n in (2, 4))
    assert type(one @ other) is Product
    with pytest.raises(TypeError):
        _ = one @ 2.0


def test_differences_of_one_kind(getkey):
    for padding in ("circular", "zero"):
        a, b = (plain(free((3, 3, 4), 4, getkey(), padding)) for _ in "ab")
        assert type(a - b) is type(a)
        difference = dense_matrix(a, (3, 3, 4)) - dense_matrix(b, (3, 3, 4))
        assert np.abs(dense_matrix(a - b, (3, 3, 4)) - difference).max() < 1e-5
    with pytest.raises(TypeError):
        _ = a - Dense(jnp.eye(4))


@pytest.mark.parametrize("padding", ["zero", "circular"])
def test_convolutions_against_lax(getkey, padding):
    x = jr.normal(getkey(), (6, 7, 3))
    conv = free((6, 7, 3), 4, getkey(), padding)
    mode = "constant" if padding == "zero" else "wrap"
    padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)), mode=mode)
    expected = jax.lax.conv_general_dilated(
        padded[None],
        conv.weight.swapaxes(2, 3),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )[0]
    assert jnp.abs(conv(x) - expected).max() < 1e-5
    if padding == "zero":
        assert jnp.abs(Conv(conv.weight.swapaxes(2, 3))(x) - expected).max() < 1e-5


def test_free_maps_measure_their_norms(getkey):
    for map_, shape in (
        (Dense(jr.normal(getkey(), (3, 5))), (5,)),
        (free((4, 5, 2), 3, getkey()), (4, 5, 2)),
        (free((4, 5, 2), 3, getkey(), "zero"), (4, 5, 2)),
        (Conv(jr.normal(getkey(), (3, 3, 2, 3)), (4, 5)), (4, 5, 2)),
    ):
        exact = singular_values(map_, shape)[0]
        assert exact <= float(map_.norm()) <= 1.3 * exact
    unknown = Conv(jr.normal(getkey(), (3, 3, 2, 3)))
    assert unknown.norm() == jnp.inf  # on a grid of any size


def test_images_of_another_grid_are_refused(getkey):
    zero: dict[str, Any] = {"constraint": "rescaled", "padding": "zero"}
    for map_ in (
        free((4, 6, 2), 3, getkey()),
        Conv(jr.normal(getkey(), (3, 3, 2, 3)), (4, 6)),
        constrained((4, 6, 2), 3, key=getkey()),
        constrained((4, 6, 2), 3, **zero, key=getkey()),
    ):
        for act, channels in ((map_, 2), (plain(map_), 2), (map_.T, 3)):
            with pytest.raises(ValueError, match="height and width"):
                act(jnp.ones((6, 4, channels)))
    field = jnode.GradientFlowField((3, 3, 4), **zero, key=getkey())
    with pytest.raises(ValueError, match="height and width"):
        field(0.0, jnp.ones((8, 8, 4)))


def test_no_lapack_in_the_transform(getkey):
    conv = constrained((5, 5, 4), 4, key=getkey())
    text = str(jax.make_jaxpr(lambda c: plain(c).column)(conv))
    assert "dot_general" in text
    for name in ("lu", "triangular_solve", "cholesky", "qr", "svd", "eigh"):
        assert f" {name}[" not in text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda k: constrained((4, 4, 3), 3, kernel_size=7, key=k), "1, 3 or 5"),
        (lambda k: constrained((4, 4, 3), 3, kernel_size=2, key=k), "must be odd"),
        (lambda k: constrained((4, 4, 0), 3, key=k), "channels must be"),
        (lambda k: constrained((4, 0, 2), 3, key=k), "width must be"),
        (lambda k: constrained((3,), -1, key=k), "out must be"),
        (lambda k: Conv(jnp.ones((4, 4, 3, 3))), "kernel must be square, of odd size"),
        (lambda k: SpaceToDepth(0), "size must be"),
        (lambda k: SpaceToDepth(2)(jnp.zeros((3, 4, 1))), "divide the grid's sides"),
        (lambda k: DepthToSpace(2)(jnp.zeros((3, 4, 6))), "divide the channels"),
    ],
)
def test_bad_sizes(getkey, make, message):
    with pytest.raises(ValueError, match=message):
        make(getkey())
