"""The products of a map with a state, computed as is fastest on each platform.

The mathematics is in the operators; only they use these forms.

All products are in full precision, except for those of a map with a state while a
training step is traced under `training_precision`. That setting is part of the key of
JAX's caches of traced and compiled functions, so a function traced for training is
never reused for a certificate.
"""

from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode._checks import check_choice

PRECISIONS = ("highest", "high", "bfloat16")
"""How products with a state may be computed in training: in full precision, in three
bfloat16 passes, or in one (`jax.lax.Precision.HIGHEST`, `HIGH` and `DEFAULT`)."""

_of_states = jax.make_user_context("highest")


def training_precision(precision: str) -> AbstractContextManager[None]:
    """Inside this context, products of maps with a state are traced in this precision.

    This includes their derivatives, if these are taken inside. Products of weights, by
    which constraints and bounds are computed, stay in full precision.

    **Arguments:** one of `PRECISIONS`.

    **Raises:** `ValueError` for another.
    """
    check_choice("precision", precision, PRECISIONS)
    return _of_states(precision)


def state_precision() -> str:
    """The precision of `training_precision`, by JAX's name."""
    return _of_states.value


def matmul(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """A matrix product in full precision, always."""
    return jnp.matmul(a, b, precision="highest")


def state_matmul(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """A matrix product with a state, in the precision of `training_precision`."""
    return jnp.matmul(a, b, precision=_of_states.value)


def spectral_product(
    transform: Float[Array, "part frequencies positions"],
    real: Float[Array, " frequencies in out"],
    imaginary: Float[Array, " frequencies in out"],
    x: Float[Array, "positions batch in"],
    *,
    padded: bool,
) -> Float[Array, "positions batch out"]:
    r"""$F^\top B F x$: each frequency's matrix, transposed, applied to its part.

    `padded`: whether there are more frequencies than positions.
    """
    on_cpu = _whole if len(x) < 64 and not padded else _by_parts
    inputs = transform, real, imaginary, x
    return jax.lax.platform_dependent(*inputs, cpu=on_cpu, default=_embedded)


def _by_parts(f, real, imaginary, x):
    """Half the products of the transform, whose parts are even and odd; and pairs of
    real products, which XLA's CPU backend runs in parallel."""
    _, frequencies, positions = f.shape
    half, batch = positions // 2, x.shape[1]
    even, odd = f[0, :, : positions - half], f[1, :, :half]
    flat = x.reshape(positions, -1)
    first, last = flat[:half], flat[positions - half :][::-1]
    middle = flat[half : positions - half]
    re = state_matmul(even, jnp.concatenate([first + last, middle]))
    im = state_matmul(odd, first - last)
    re, im = (part.reshape(frequencies, batch, -1) for part in (re, im))
    re, im = _complex_product(re, im, real, imaginary)
    same = state_matmul(even.T, re)
    turned = state_matmul(odd.T, im)
    first, middle = same[:half], same[half:]
    out = jnp.concatenate([first + turned, middle, (first - turned)[::-1]])
    return out.reshape(positions, batch, -1)


def _whole(f, real, imaginary, x):
    """As `_by_parts`, with all products of the transform. With few positions this is
    cheaper, since XLA's CPU backend recomputes what a sum of reversed rows depends on
    for each of its uses, unless a gradient of a weight needs it too."""
    _, frequencies, positions = f.shape
    flat = x.reshape(positions, -1)
    re, im = (
        state_matmul(part, flat).reshape(frequencies, x.shape[1], -1) for part in f
    )
    re, im = _complex_product(re, im, real, imaginary)
    return (state_matmul(f[0].T, re) + state_matmul(f[1].T, im)).reshape(
        *x.shape[:2], -1
    )


def _complex_product(re, im, real, imaginary):
    """Parts of the products of each frequency, flat."""
    out = (
        state_matmul(re, real) - state_matmul(im, imaginary),
        state_matmul(re, imaginary) + state_matmul(im, real),
    )
    return (part.reshape(len(re), -1) for part in out)


def _embedded(f, real, imaginary, x):
    """One product for both parts, with layouts chosen by the compiler: fastest on
    TPU."""
    blocks = jnp.stack(
        [
            jnp.stack([real, imaginary], axis=2),
            jnp.stack([-imaginary, real], axis=2),
        ],
        axis=1,
    )
    spectrum = jnp.einsum("pfs,sbi->fbpi", f, x, precision=_of_states.value)
    out = jnp.einsum("fbpi,fpiqo->fbqo", spectrum, blocks, precision=_of_states.value)
    return jnp.einsum("qfs,fbqo->sbo", f, out, precision=_of_states.value)


def to_frequencies(
    transform: Float[Array, "part frequencies positions"],
    x: Float[Array, "positions batch channels"],
) -> Float[Array, "frequencies batch two_channels"]:
    r"""$Fx$, real parts before imaginary ones along the last axis."""
    positions, batch, channels = x.shape
    z = state_matmul(_interleaved(transform), x.reshape(positions, -1))
    z = z.reshape(-1, 2, batch, channels)
    return z.swapaxes(1, 2).reshape(-1, batch, 2 * channels)


def from_frequencies(
    transform: Float[Array, "part frequencies positions"],
    z: Float[Array, "frequencies batch two_channels"],
) -> Float[Array, "positions batch channels"]:
    r"""$F^\top z$, the inverse of `to_frequencies`."""
    frequencies, batch, _ = z.shape
    parts = z.reshape(frequencies, batch, 2, -1).swapaxes(1, 2)
    x = state_matmul(_interleaved(transform).T, parts.reshape(2 * frequencies, -1))
    return x.reshape(-1, batch, parts.shape[-1])


def _interleaved(transform):
    """The transform as one matrix: each frequency's real part, then its imaginary."""
    return transform.swapaxes(0, 1).reshape(-1, transform.shape[-1])
