"""Gaussian noise: not an attack, but a baseline for attacks."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.attacks.base import compiled
from jnode.attacks.inputs import check_images
from jnode.attacks.losses import Images


def _as_sigma(sigma):
    known = not isinstance(sigma, Tracer)
    if known and not (np.ndim(sigma) == 0 and 0 <= sigma < np.inf):
        raise ValueError(
            f"sigma must be a number of at least 0 and finite, not {sigma!r}."
        )
    return jnp.asarray(sigma, dtype=float)


class GaussianNoise(eqx.Module):
    r"""Adds $\mathcal N(0, \sigma^2)$ to each pixel and clips to [0, 1].

    It does not depend on the model and has no budget: no norm bounds the noise, so it
    takes no part in a worst case.

    **Arguments:** `sigma`, the standard deviation in pixel units.

    **Raises:** `ValueError` for a sigma that is negative or not finite.
    """

    name: ClassVar[str] = "gaussian"
    # The interface of an attack that `run` uses.
    via: ClassVar[str] = ""
    least_classes: ClassVar[int] = 2
    steps: ClassVar[int] = 1
    restarts: ClassVar[int] = 1
    sigma: Float[Array, ""] = eqx.field(converter=_as_sigma)

    def __call__(self, images: ArrayLike, *, key: PRNGKeyArray) -> Images:
        """The noisy images.

        **Arguments:** [batch, height, width, channels], float32 or float64 in [0, 1];
        the key of the noise.

        **Raises:** for bad images, as an attack.
        """
        images = jnp.asarray(check_images(images))
        return compiled(_noisy, images, self.sigma, key)

    def parts(self) -> tuple["GaussianNoise", ...]:
        """The noise itself, which is a single draw."""
        return (self,)


def _noisy(images, sigma, key):
    noise = jr.normal(key, images.shape, images.dtype)
    return jnp.clip(images + sigma.astype(images.dtype) * noise, 0.0, 1.0)
