"""Random noise: not an attack, but what every attack must beat."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.attacks.base import (
    AbstractAttack,
    Classifier,
    Images,
    Labels,
    Logits,
    check_budget,
)
from jnode.attacks.norms import random_start


class _Noise(AbstractAttack):
    """One draw, without a look at the model."""

    epsilon: Float[Array, ""]
    norm: str = eqx.field(static=True)
    steps: int = eqx.field(static=True, default=1)
    restarts: int = eqx.field(static=True, default=1)

    def evaluations(self) -> tuple[int, int]:
        return 1, 0


class GaussianNoise(_Noise):
    r"""Adds $\mathcal N(0, \sigma^2)$ to each pixel and clips to [0, 1].

    `epsilon` is the standard deviation $\sigma$ in pixel units, as the noise itself is
    not bounded; `norm` is "sigma".
    """

    name: ClassVar[str] = "gaussian"

    def __init__(self, epsilon: float):
        """**Arguments:** the standard deviation, e.g. 50/255."""
        self.epsilon, self.norm = check_budget(epsilon, "l2"), "sigma"

    def search(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        clean: Logits,
        *,
        key: PRNGKeyArray,
    ) -> Images:
        noise = jr.normal(key, images.shape, images.dtype)
        return jnp.clip(images + self.epsilon * noise, 0.0, 1.0)


class UniformNoise(_Noise):
    r"""Adds uniform noise from $[-\epsilon, \epsilon]$ to each pixel; clips to [0, 1].

    The weakest attack of its Linf budget.
    """

    name: ClassVar[str] = "uniform"

    def __init__(self, epsilon: float):
        """**Arguments:** the Linf budget in pixel units."""
        self.epsilon, self.norm = check_budget(epsilon, "linf"), "linf"

    def search(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        clean: Logits,
        *,
        key: PRNGKeyArray,
    ) -> Images:
        return random_start(images, self.epsilon, "linf", key)


class SaltAndPepperNoise(_Noise):
    """Turns a share of the pixels black or white, as often the one as the other.

    `epsilon` is that share, in [0, 1]; all channels of a pixel turn together; `norm`
    is "share".
    """

    name: ClassVar[str] = "salt-and-pepper"

    def __init__(self, epsilon: float):
        """**Arguments:** the share of the pixels, in [0, 1]."""
        if not 0 <= epsilon <= 1:
            raise ValueError(
                f"epsilon is a share of the pixels, in [0, 1], not {epsilon!r}."
            )
        self.epsilon, self.norm = jnp.asarray(epsilon, jnp.float32), "share"

    def search(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        clean: Logits,
        *,
        key: PRNGKeyArray,
    ) -> Images:
        chosen, white = jr.uniform(key, (2, *images.shape[:3], 1), images.dtype)
        extreme = (white < 0.5).astype(images.dtype)
        return jnp.where(chosen < self.epsilon, extreme, images)
