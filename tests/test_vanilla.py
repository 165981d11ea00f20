"""Layers in the place of Equinox's: their norms, and their export to plain layers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode.constraints import (
    CONSTRAINTS,
    BoundedConv2d,
    BoundedLinear,
    constrained,
    vanilla_export,
)

ZERO = ("rescaled", "aol", "sll")
CONVS = [
    (name, padding, grid, channels)
    for name in CONSTRAINTS
    for padding in ("circular", "zero")
    if padding == "circular" or name in ZERO
    for grid, channels in (((6, 5), (3, 4)), ((8, 8), (4, 2)))
]


def singular_values(layer, shape):
    """Of the linear part, on the identity basis, in float64."""
    basis = jnp.eye(int(np.prod(shape))).reshape(-1, *shape)
    zero = layer(jnp.zeros(shape))
    images = jax.vmap(lambda x: layer(x) - zero)(basis)
    matrix = np.asarray(images, np.float64).reshape(len(basis), -1)
    return np.linalg.svd(matrix, compute_uv=False)


@pytest.mark.parametrize(("name", "padding", "grid", "channels"), CONVS)
def test_convolutions_are_bounded_and_exported(getkey, name, padding, grid, channels):
    layer = BoundedConv2d(
        *channels, grid=grid, padding=padding, constraint=name, key=getkey()
    )
    layer = eqx.tree_at(lambda x: x.bias, layer, jr.normal(getkey(), (channels[1],)))
    exported = vanilla_export(layer)
    assert type(exported) is eqx.nn.Conv2d
    if name in ZERO:
        assert exported.kernel_size == (3, 3)
    x = jr.normal(getkey(), (channels[0], *grid))
    np.testing.assert_allclose(exported(x), layer(x), atol=3e-5)
    values = singular_values(exported, x.shape)
    assert values.max() <= float(layer.map.norm()) + 1e-5
    if name == "cayley":
        rank = min(channels) * grid[0] * grid[1]
        assert np.abs(values[:rank] - 1).max() < 1e-4


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("bias", [True, False])
def test_matrices_are_bounded_and_exported(getkey, name, bias):
    layer = BoundedLinear(5, 7, bias, constraint=name, key=getkey())
    exported = vanilla_export(layer)
    assert type(exported) is eqx.nn.Linear and exported.use_bias == bias
    x = jr.normal(getkey(), (5,))
    np.testing.assert_allclose(exported(x), layer(x), atol=1e-6)
    assert singular_values(exported, (5,)).max() <= float(layer.map.norm()) + 1e-6


@pytest.mark.slow
def test_a_model_of_equinox(getkey):
    """Layers of both kinds, and functions, side by side; trained for a step first."""
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(1, 4, 3, padding=1, key=getkey()),
            eqx.nn.Lambda(jax.nn.relu),
            BoundedConv2d(4, 4, grid=(6, 6), key=getkey()),
            eqx.nn.Lambda(jnp.ravel),
            BoundedLinear(144, 3, key=getkey()),
        ]
    )
    x = jr.normal(getkey(), (1, 6, 6))
    gradient = eqx.filter_grad(lambda m: jnp.sum(m(x) ** 2))(model)
    model = eqx.apply_updates(model, jax.tree.map(lambda g: -0.1 * g, gradient))
    exported = vanilla_export(model)
    np.testing.assert_allclose(exported(x), model(x), atol=1e-4)
    held = jax.tree.leaves(exported, is_leaf=lambda m: isinstance(m, eqx.nn.Conv2d))
    assert sum(isinstance(m, eqx.nn.Conv2d) for m in held) == 2
    modules = jax.tree.leaves(exported, is_leaf=lambda m: isinstance(m, eqx.Module))
    assert not any(type(m).__module__.startswith("jnode") for m in modules)


def test_bare_matrices_are_exported(getkey):
    maps = {"a": constrained((3,), 3, key=getkey()), "b": jnp.ones(2)}
    exported = vanilla_export(maps)
    assert type(exported["a"]) is eqx.nn.Linear and exported["a"].bias is None
    assert exported["b"] is maps["b"]


def test_what_has_no_such_layer_is_refused(getkey):
    conv = constrained((6, 6, 2), 2, key=getkey())
    stack = lambda make: eqx.filter_vmap(make)(jr.split(getkey(), 2))
    zero = {"grid": (6, 6), "padding": "zero", "constraint": "aol"}
    refused = {
        "Constrained": conv,
        "Product": conv.T @ jnode.linear.SpaceToDepth(1),
        "BoundedLinear": stack(lambda key: BoundedLinear(3, 3, key=key)),
        "BoundedConv2d": stack(lambda key: BoundedConv2d(2, 2, **zero, key=key)),
        "OrthoField": jnode.OrthoField((3,), key=getkey()),
    }
    for name, part in refused.items():
        with pytest.raises(TypeError, match=rf"tree\['x'\]\[0\] is of type {name}, "):
            vanilla_export({"x": [part]})


def test_bad_input_is_refused(getkey):
    with pytest.raises(ValueError, match="out must be"):
        BoundedLinear(3, 0, key=getkey())
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        BoundedConv2d(3, 3, 2, grid=(6, 6), key=getkey())
    layer = BoundedConv2d(3, 3, grid=(6, 6), key=getkey())
    with pytest.raises(ValueError, match="grid"):
        layer(jnp.zeros((3, 5, 5)))
