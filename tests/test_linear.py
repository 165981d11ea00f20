"""Linear maps: their norms are facts, checked by dense SVD in float64."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jnode
from jnode.linear import (
    CayleyConv,
    CayleyDense,
    CircularConv,
    Conv,
    Dense,
    cayley,
    constrained,
)
from tests.helpers import dense_matrix, singular_values

CONVS = [
    ((7, 7), 3, 4, 4),
    ((6, 5), 5, 3, 6),
    ((4, 4), 1, 6, 3),
    ((8, 8), 3, 1, 4),
    ((2, 3), 3, 2, 2),
]


@pytest.mark.parametrize(("grid", "size", "inputs", "outputs"), CONVS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_cayley_conv_is_orthogonal(getkey, grid, size, inputs, outputs, scale):
    conv = CayleyConv(inputs, outputs, grid=grid, kernel_size=size, key=getkey())
    conv = jax.tree.map(lambda w: w * scale, conv)
    values = singular_values(conv.bake(), (*grid, inputs))
    rank = grid[0] * grid[1] * min(inputs, outputs)
    assert np.abs(values[:rank] - 1).max() < 1e-5
    assert values[rank:].max(initial=0) < 1e-5
    bound = float(conv.norm())
    assert values.max() <= bound < 1 + 1e-3


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 8), (5, 9), (9, 5), (1, 1)])
def test_cayley_dense_is_orthogonal(getkey, inputs, outputs):
    dense = CayleyDense(inputs, outputs, key=getkey())
    values = singular_values(dense.bake(), (inputs,))
    assert np.abs(values - 1).max() < 1e-5
    assert values.max() <= float(dense.norm()) < 1 + 1e-3


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
    conv = CayleyConv(4, 4, grid=(5, 5), key=getkey())
    target = jr.normal(getkey(), (5, 5, 4))
    x = jr.normal(getkey(), (5, 5, 4))
    optimizer = optax.adamw(0.1)

    @eqx.filter_jit
    def step(conv, state):
        grads = eqx.filter_grad(lambda c: jnp.sum((c(x) - target) ** 2))(conv)
        updates, state = optimizer.update(grads, state, conv)
        return eqx.apply_updates(conv, updates), state

    state = optimizer.init(conv)
    before = conv.kernel
    for _ in range(25):
        conv, state = step(conv, state)
    assert jnp.abs(conv.kernel - before).max() > 0.1
    assert np.abs(singular_values(conv.bake(), (5, 5, 4)) - 1).max() < 1e-4


MAPS = {
    "dense": lambda key: (Dense(5, 3, key=key), (5,), (3,)),
    "cayley dense": lambda key: (CayleyDense(3, 5, key=key), (3,), (5,)),
    "conv": lambda key: (Conv(2, 3, key=key), (4, 5, 2), (4, 5, 3)),
    "circular": lambda key: (
        CircularConv(2, 3, grid=(4, 5), key=key),
        (4, 5, 2),
        (4, 5, 3),
    ),
    "cayley conv": lambda key: (
        CayleyConv(2, 3, grid=(4, 5), key=key),
        (4, 5, 2),
        (4, 5, 3),
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_transpose_and_bake(getkey, name):
    map_, inputs, outputs = MAPS[name](getkey())
    forward = dense_matrix(map_, inputs)
    assert np.abs(dense_matrix(map_.transpose, outputs) - forward.T).max() < 1e-5
    assert np.abs(dense_matrix(map_.bake(), inputs) - forward).max() < 1e-6


@pytest.mark.parametrize("padding", ["zero", "circular"])
def test_convolutions_against_lax(getkey, padding):
    x = jr.normal(getkey(), (6, 7, 3))
    if padding == "zero":
        conv = Conv(3, 4, key=getkey())
        kernel, mode = conv.kernel, "constant"
    else:
        conv = CircularConv(3, 4, grid=(6, 7), key=getkey())
        kernel, mode = conv.kernel.swapaxes(2, 3), "wrap"
    padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)), mode=mode)
    expected = jax.lax.conv_general_dilated(
        padded[None],
        kernel,
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )[0]
    assert jnp.abs(conv(x) - expected).max() < 1e-5


def test_free_maps_measure_their_norms(getkey):
    grid = {"grid": (4, 5)}
    for map_, shape in (
        (Dense(5, 3, key=getkey()), (5,)),
        (CircularConv(2, 3, **grid, key=getkey()), (4, 5, 2)),
        (Conv(2, 3, **grid, key=getkey()), (4, 5, 2)),
    ):
        exact = singular_values(map_, shape)[0]
        assert exact <= float(map_.norm()) <= 1.3 * exact
    assert Conv(2, 3, key=getkey()).norm() == jnp.inf  # on a grid of any size


def test_images_of_another_grid_are_refused(getkey):
    zero = {"constraint": "rescaled", "padding": "zero"}
    for map_ in (
        CircularConv(2, 3, grid=(4, 6), key=getkey()),
        Conv(2, 3, grid=(4, 6), key=getkey()),
        constrained((4, 6, 2), 3, key=getkey()),
        constrained((4, 6, 2), 3, **zero, key=getkey()),
    ):
        for act in (map_, map_.bake(), map_.transpose):
            channels = 3 if act is map_.transpose else 2
            with pytest.raises(ValueError, match="height and width"):
                act(jnp.ones((6, 4, channels)))
    field = jnode.GradientFlowField((3, 3, 4), **zero, key=getkey())
    with pytest.raises(ValueError, match="height and width"):
        field(0.0, jnp.ones((8, 8, 4)))


def test_no_lapack_in_the_transform(getkey):
    conv = CayleyConv(4, 4, grid=(5, 5), key=getkey())
    text = str(jax.make_jaxpr(lambda c: c.bake().column)(conv))
    assert "dot_general" in text
    for name in ("lu", "triangular_solve", "cholesky", "qr", "svd", "eigh"):
        assert f" {name}[" not in text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda k: CayleyConv(3, 3, grid=(4, 4), kernel_size=2, key=k), "1, 3 or 5"),
        (lambda k: CayleyConv(0, 3, grid=(4, 4), key=k), "in_channels must be"),
        (lambda k: CayleyDense(3, -1, key=k), "out_size must be"),
        (lambda k: Conv(3, 3, kernel_size=4, key=k), "kernel_size must be odd"),
    ],
)
def test_bad_sizes(getkey, make, message):
    with pytest.raises(ValueError, match=message):
        make(getkey())
