"""A model as plain data, and the model it describes."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PRNGKeyArray

from jnode.fields import (
    AbstractVectorField,
    FreeField,
    GradientFlowField,
    OrthoField,
)
from jnode.models.classifier import ODEClassifier
from jnode.models.encoders import ConvEncoder, IsometricEncoder
from jnode.models.head import Head
from jnode.solvers import Solver

FIELDS = ("ortho", "gradient_flow", "free")
ENCODERS = ("isometric", "conv")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What model to build.

    - `field`: "ortho", "gradient_flow" or "free" (unconstrained).
    - `encoder`: "isometric" (norm 1) or "conv" (free, as in the ODENet literature).
    - `features`: channels of the state.
    - `patch`: side of the isometric encoder's blocks of pixels.
    - `lipschitz`: the constant $L$ of a constrained field; with `learnable`, its cap.
    - `hidden`: inner channels of the field; by default as many as `features`.
    - `kernel_size`, `activation`: of the field.
    - `padding`, `time`, `group_norm`: of the free field. Circular padding makes it the
        Ortho field with the constraint off.
    - `unit_norm`: whether the head's rows have norm 1.
    """

    field: str = "ortho"
    encoder: str = "isometric"
    features: int = 32
    patch: int = 4
    lipschitz: float = 1.0
    learnable: bool = False
    hidden: int | None = None
    kernel_size: int = 3
    activation: str = "relu"
    padding: str = "zero"
    time: bool = False
    group_norm: bool = False
    unit_norm: bool = True

    def __post_init__(self):
        for name, known in (("field", FIELDS), ("encoder", ENCODERS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, "
                    f"not {getattr(self, name)!r}."
                )


def build(
    config: ModelConfig,
    solver: Solver,
    *,
    image_shape: tuple[int, int, int],
    classes: int,
    key: PRNGKeyArray,
) -> ODEClassifier:
    """The model that a configuration describes, with fresh weights.

    **Arguments:** the configuration, the solver, the shape of an image (height, width,
    channels), the number of classes, and the key of the initial weights.

    **Raises:** `ValueError` for a configuration that fits no such image.
    """
    keys = jr.split(key, 3)
    if config.encoder == "isometric":
        encoder = IsometricEncoder(
            image_shape, patch=config.patch, features=config.features
        )
    else:
        encoder = ConvEncoder(image_shape, features=config.features, key=keys[0])
    shape = encoder(jnp.zeros(image_shape)).shape
    field = _field(config, shape, keys[1])
    size = shape[0] * shape[1] * shape[2]
    head = Head(size, classes, unit_norm=config.unit_norm, key=keys[2])
    return ODEClassifier(encoder, field, head, solver, image_shape)


def _field(config: ModelConfig, shape, key) -> AbstractVectorField:
    common: dict[str, Any] = dict(
        hidden=config.hidden,
        kernel_size=config.kernel_size,
        activation=config.activation,
        key=key,
    )
    if config.field == "free":
        return FreeField(
            shape,
            padding=config.padding,
            time=config.time,
            group_norm=config.group_norm,
            **common,
        )
    kind = OrthoField if config.field == "ortho" else GradientFlowField
    return kind(shape, lipschitz=config.lipschitz, learnable=config.learnable, **common)
