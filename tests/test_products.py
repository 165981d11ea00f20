"""Products as each platform computes them, called directly on this one."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jnode.linear.products import (
    _by_parts,
    _by_patches,
    _embedded,
    _native,
    _whole,
    spectral_product,
    zero_padded_product,
)
from jnode.linear.spectral_conv import transform


@pytest.mark.parametrize("form", [_by_parts, _whole, _embedded])
@pytest.mark.parametrize(("grid", "margin"), [((3, 5), 0), ((4, 4), 0), ((3, 4), 1)])
def test_each_spectral_form_is_the_definition(getkey, form, grid, margin):
    """In complex numbers and in double precision: each frequency has its matrix."""
    f = transform(*grid, margin)
    frequencies, positions = f.shape[1:]
    real, imaginary = jr.normal(getkey(), (2, frequencies, 3, 4))
    x = jr.normal(getkey(), (positions, 2, 3))
    exact = [np.asarray(a, np.float64) for a in (f, real, imaginary, x)]
    whole = exact[0][0] - 1j * exact[0][1]
    spectrum = np.einsum("fs,sbi->fbi", whole, exact[3])
    mapped = np.einsum("fbi,fio->fbo", spectrum, exact[1] - 1j * exact[2])
    expected = np.einsum("fs,fbo->sbo", whole.conj(), mapped).real
    args = jnp.asarray(f, jnp.float32), real, imaginary, x
    np.testing.assert_allclose(jax.jit(form)(*args), expected, atol=2e-5)
    chosen = spectral_product(*args, padded=margin > 0)
    np.testing.assert_allclose(chosen, expected, atol=2e-5)


@pytest.mark.parametrize("form", [_by_patches, _native])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_each_form_of_a_zero_padded_convolution_is_the_definition(getkey, form, size):
    kernel = jr.normal(getkey(), (size, size, 2, 3))
    x = jr.normal(getkey(), (4, 5, 2, 2))
    r = size // 2
    padded = np.pad(np.asarray(x, np.float64), ((r, r), (r, r), (0, 0), (0, 0)))
    expected = sum(
        padded[i : i + 4, j : j + 5] @ np.asarray(kernel[i, j], np.float64)
        for i in range(size)
        for j in range(size)
    )
    np.testing.assert_allclose(jax.jit(form)(x, kernel), expected, atol=2e-5)
    chosen = zero_padded_product(kernel, None, x)
    np.testing.assert_allclose(chosen, expected, atol=2e-5)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_have_products_of_their_own(platform):
    """They are chosen when a program is lowered, gradients included."""
    f = jnp.asarray(transform(3, 5), jnp.float32)
    matrices = jnp.ones((f.shape[1], 3, 4))

    def spectral(x):
        return jnp.sum(spectral_product(f, matrices, matrices, x, padded=False) ** 2)

    def convolved(kernel):
        return jnp.sum(zero_padded_product(kernel, None, jnp.ones((4, 5, 2))) ** 2)

    for function, x, word in (
        (spectral, jnp.ones((15, 2, 3)), "stablehlo.dot_general"),
        (convolved, jnp.ones((3, 3, 2, 3)), "stablehlo.convolution"),
    ):
        export = lambda where, f=function, x=x: jax.export.export(
            jax.jit(jax.grad(f)), platforms=[where]
        )(x).mlir_module()
        there, here = export(platform), export("cpu")
        assert word in there and there != here
        assert (word in here) == (function is spectral)
