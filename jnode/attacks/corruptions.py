"""Common corruptions (Hendrycks & Dietterich, ICLR 2019), those that need no files.

The five severities are those of CIFAR-10-C, made for images of 32 pixels' side.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.attacks.base import AbstractAttack, Classifier, Images, Labels, Logits

SEVERITIES = 5


class AbstractCorruption(AbstractAttack):
    """One corruption; `epsilon` is its severity, 1 to 5, and `norm` "corruption".

    It has no budget in pixels, so it counts for no worst case of one.
    """

    epsilon: Float[Array, ""]
    norm: str = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    restarts: int = eqx.field(static=True)
    amounts: eqx.AbstractClassVar[tuple[float, ...]]

    def __init__(self, epsilon: float):
        """**Arguments:** the severity: a whole number from 1 to 5."""
        if epsilon not in range(1, SEVERITIES + 1):
            raise ValueError(
                f"severity must be a whole number from 1 to {SEVERITIES}, not "
                f"{epsilon!r}."
            )
        self.epsilon = jnp.asarray(epsilon, jnp.float32)
        self.norm, self.steps, self.restarts = "corruption", 1, 1

    @abc.abstractmethod
    def corrupt(
        self, images: Images, amount: Float[Array, ""], key: PRNGKeyArray
    ) -> Images:
        """The corrupted images, not yet clipped to [0, 1]."""

    def evaluations(self) -> tuple[int, int]:
        return 1, 0

    def search(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        clean: Logits,
        *,
        key: PRNGKeyArray,
    ) -> Images:
        amounts = jnp.asarray(self.amounts, images.dtype)
        amount = amounts[self.epsilon.astype(int) - 1]
        return jnp.clip(self.corrupt(images, amount, key), 0.0, 1.0)


class ShotNoise(AbstractCorruption):
    """Poisson noise, as of few photons."""

    name: ClassVar[str] = "shot-noise"
    amounts: ClassVar[tuple[float, ...]] = (500, 250, 100, 75, 50)

    def corrupt(self, images, amount, key):
        return jr.poisson(key, images * amount).astype(images.dtype) / amount


class SpeckleNoise(AbstractCorruption):
    """Gaussian noise in proportion to the pixel."""

    name: ClassVar[str] = "speckle-noise"
    amounts: ClassVar[tuple[float, ...]] = (0.06, 0.1, 0.12, 0.16, 0.2)

    def corrupt(self, images, amount, key):
        return images * (1 + amount * jr.normal(key, images.shape, images.dtype))


class GaussianBlur(AbstractCorruption):
    """A Gaussian filter, of this standard deviation in pixels."""

    name: ClassVar[str] = "gaussian-blur"
    amounts: ClassVar[tuple[float, ...]] = (0.4, 0.6, 0.7, 0.8, 1.0)

    def corrupt(self, images, amount, key):
        def matrix(n):
            place = jnp.arange(n).astype(images.dtype)
            apart = place[:, None] - place[None]
            weights = jnp.exp(-0.5 * (apart / amount) ** 2)
            return weights / jnp.sum(weights, axis=1, keepdims=True)

        return _separable(images, matrix)


class Contrast(AbstractCorruption):
    """Pixels drawn towards each channel's mean."""

    name: ClassVar[str] = "contrast"
    amounts: ClassVar[tuple[float, ...]] = (0.75, 0.5, 0.4, 0.3, 0.15)

    def corrupt(self, images, amount, key):
        mean = jnp.mean(images, axis=(1, 2), keepdims=True)
        return mean + amount * (images - mean)


class Brightness(AbstractCorruption):
    """Adds to the value of hue, saturation and value."""

    name: ClassVar[str] = "brightness"
    amounts: ClassVar[tuple[float, ...]] = (0.05, 0.1, 0.15, 0.2, 0.3)

    def corrupt(self, images, amount, key):
        value = jnp.max(images, axis=3, keepdims=True)
        brighter = jnp.minimum(value + amount, 1.0)
        # Hue and saturation keep the ratios of the channels; black has none and
        # becomes grey.
        ratios = jnp.where(value > 0, images / jnp.maximum(value, 1e-12), 1.0)
        return brighter * ratios


class Pixelate(AbstractCorruption):
    """Shrunk to this share of its side by averages, and enlarged by repetition."""

    name: ClassVar[str] = "pixelate"
    amounts: ClassVar[tuple[float, ...]] = (0.95, 0.9, 0.85, 0.75, 0.65)

    def corrupt(self, images, amount, key):
        def matrix(n):
            # Of a side of m pixels, each the mean of n / m old ones.
            m = jnp.maximum(jnp.floor(n * amount), 1)
            pixel = jnp.arange(n).astype(images.dtype)
            begin = jnp.floor((pixel + 0.5) * m / n) * n / m
            end = jnp.minimum(begin[:, None] + n / m, pixel[None] + 1)
            overlap = end - jnp.maximum(begin[:, None], pixel[None])
            return jnp.maximum(overlap, 0) * m / n

        return _separable(images, matrix)


def _separable(images, matrix):
    """A linear map along rows, then along columns, `matrix(n)` of length n."""
    rows, columns = matrix(images.shape[1]), matrix(images.shape[2])
    return jnp.einsum("ih,bhwc,jw->bijc", rows, images, columns, precision="highest")


CORRUPTIONS = (ShotNoise, SpeckleNoise, GaussianBlur, Contrast, Brightness, Pixelate)
"""The known corruptions, beside Gaussian and salt-and-pepper noise."""
