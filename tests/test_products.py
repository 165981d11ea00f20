"""Products as each platform computes them, called directly on this one."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jnode.linear.conv import zero_padded
from jnode.linear.products import (
    _by_parts,
    _embedded,
    _whole,
    spectral_product,
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


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_have_products_of_their_own(platform):
    """They are chosen when a program is lowered, gradients included."""
    f = jnp.asarray(transform(3, 5), jnp.float32)
    matrices = jnp.ones((f.shape[1], 3, 4))

    def spectral(x):
        return jnp.sum(spectral_product(f, matrices, matrices, x, padded=False) ** 2)

    conv = zero_padded(jnp.ones((3, 3, 40, 30)), (3, 3))

    def convolved(x):
        return jnp.sum(conv(x) ** 2)

    for function, x, word in (
        (spectral, jnp.ones((15, 2, 3)), "stablehlo.dot_general"),
        (convolved, jnp.ones((3, 3, 40)), "convolution"),
    ):
        export = lambda where, f=function, x=x: jax.export.export(
            jax.jit(jax.grad(f)), platforms=[where]
        )(x).mlir_module()
        there, here = export(platform), export("cpu")
        assert word in there and there != here
        assert (word in here) == (function is spectral)
