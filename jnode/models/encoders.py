"""From an image to the state that the ODE starts from."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode._checks import check_positive
from jnode.fields.two_layer import channels_first


class AbstractEncoder(eqx.Module):
    """A map from an image to a state, normalisation included.

    `affine` tells whether its Jacobian is the same everywhere.
    """

    affine: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(
        self, image: Float[Array, "height width channels"]
    ) -> Float[Array, "rows columns features"]:
        """The state $y(0)$ of one image."""

    @abc.abstractmethod
    def lipschitz(self) -> Float[Array, ""]:
        """A certified upper bound on the encoder's L2 Lipschitz constant, or `inf`."""


class IsometricEncoder(AbstractEncoder):
    """Space-to-depth and zero channels: distances stay as they are.

    A block of `patch` by `patch` pixels becomes one position whose channels are the
    block's pixels, then channels of zeros are added up to `features`. Pixels are
    centred at one half.
    """

    affine: ClassVar[bool] = True

    patch: int = eqx.field(static=True)
    features: int = eqx.field(static=True)

    def __init__(self, image_shape: tuple[int, int, int], *, patch: int, features: int):
        """**Arguments:** the image's shape, the block's side, and the state's channels.

        **Raises:** `ValueError` if `patch` divides not both sides, or `features` is
        less than the block's number of pixels.
        """
        check_positive(patch=patch, features=features)
        height, width, channels = image_shape
        if height % patch or width % patch:
            raise ValueError(
                f"patch must divide the image's sides, {height} and {width}, "
                f"which {patch} does not."
            )
        if features < patch * patch * channels:
            raise ValueError(
                f"features must be at least patch * patch * channels = "
                f"{patch * patch * channels}, not {features}."
            )
        self.patch = patch
        self.features = features

    def __call__(
        self, image: Float[Array, "height width channels"]
    ) -> Float[Array, "rows columns features"]:
        height, width, channels = image.shape
        p = self.patch
        blocks = image.reshape(height // p, p, width // p, p, channels) - 0.5
        blocks = blocks.transpose(0, 2, 1, 3, 4)
        blocks = blocks.reshape(height // p, width // p, p * p * channels)
        return jnp.pad(blocks, ((0, 0), (0, 0), (0, self.features - blocks.shape[-1])))

    def lipschitz(self) -> Float[Array, ""]:
        return jnp.asarray(1.0)


class ConvEncoder(AbstractEncoder):
    """The free encoder of the ODENet literature (Chen et al., NeurIPS 2018).

    A 3x3 convolution, then two 4x4 convolutions of stride 2, with group norm and relu
    between them. Nothing bounds its stretch.
    """

    convs: tuple[eqx.nn.Conv2d, ...]
    norms: tuple[eqx.nn.GroupNorm, ...]

    def __init__(
        self, image_shape: tuple[int, int, int], *, features: int, key: PRNGKeyArray
    ):
        """**Arguments:** the image's shape, the state's channels (even), and a key."""
        check_positive(features=features)
        if features % 2:
            raise ValueError(f"features must be even for group norm, not {features}.")
        keys = jr.split(key, 3)
        channels = image_shape[-1]
        self.convs = (
            eqx.nn.Conv2d(channels, features, 3, 1, 1, key=keys[0]),
            eqx.nn.Conv2d(features, features, 4, 2, 1, key=keys[1]),
            eqx.nn.Conv2d(features, features, 4, 2, 1, key=keys[2]),
        )
        groups = next(g for g in (16, 8, 4, 2, 1) if features % (2 * g) == 0)
        self.norms = tuple(eqx.nn.GroupNorm(groups, features) for _ in range(2))

    def __call__(
        self, image: Float[Array, "height width channels"]
    ) -> Float[Array, "rows columns features"]:
        x = channels_first(self.convs[0], image - 0.5)
        for norm, conv in zip(self.norms, self.convs[1:], strict=True):
            x = channels_first(conv, jax.nn.relu(channels_first(norm, x)))
        return x

    def lipschitz(self) -> Float[Array, ""]:
        return jnp.asarray(jnp.inf)
