"""Gaussian noise: not an attack, but what every attack must beat."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jnode.attacks.base import AbstractAttack, Classifier, Images, check_budget


class GaussianNoise(AbstractAttack):
    r"""Adds $\mathcal N(0, \sigma^2)$ to each pixel and clips to [0, 1].

    `epsilon` is the standard deviation $\sigma$ in pixel units, as the noise itself is
    not bounded; `norm` is "sigma".
    """

    name: ClassVar[str] = "gaussian"
    epsilon: Float[Array, ""]
    norm: str = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    restarts: int = eqx.field(static=True)

    def __init__(self, epsilon: float):
        """**Arguments:** the standard deviation, e.g. 50/255."""
        self.epsilon = check_budget(epsilon, "l2")
        self.norm, self.steps, self.restarts = "sigma", 1, 1

    def __call__(
        self,
        model: Classifier,
        images: Images,
        labels: Int[Array, " batch"],
        *,
        key: PRNGKeyArray,
    ) -> Images:
        noise = jr.normal(key, images.shape)
        return jnp.clip(images + self.epsilon * noise, 0.0, 1.0)
