"""A model as plain data, and the model it describes."""

import dataclasses
import inspect
from typing import Any

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PRNGKeyArray

from jnode._checks import check_choice, check_positive
from jnode.fields import (
    AbstractVectorField,
    FreeField,
    GradientFlowField,
    HamiltonianField,
    OrthoField,
    PiecewiseField,
    SkewField,
)
from jnode.models.classifier import Head, ODEClassifier
from jnode.models.encoders import ConvEncoder, IsometricEncoder
from jnode.solvers import Solver

FIELDS: dict[str, type[AbstractVectorField]] = {
    "ortho": OrthoField,
    "gradient_flow": GradientFlowField,
    "skew": SkewField,
    "hamiltonian": HamiltonianField,
    "free": FreeField,
}
ENCODERS = ("isometric", "conv")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What model to build.

    - `field`: "ortho", "gradient_flow", "skew", "hamiltonian" or "free"
        (unconstrained).
    - `encoder`: "isometric" (norm 1) or "conv" (free, as in the ODENet literature).
    - `features`: channels of the state.
    - `patch`: side of the isometric encoder's blocks of pixels.
    - `pieces`: fields with weights of their own, one after another in time. The
        solver's steps must be a multiple.
    - `unit_norm`: whether the head's rows have norm 1.

    The other options are the field's, by the same names (see its class); those it does
    not have must stay as they are. `None` leaves the choice to the field.
    """

    field: str = "ortho"
    encoder: str = "isometric"
    features: int = 32
    patch: int = 4
    pieces: int = 1
    unit_norm: bool = True
    lipschitz: float = 1.0
    learnable: bool = False
    hidden: int | None = None
    constraint: str | None = None
    kernel_size: int = 3
    padding: str | None = None
    activation: str = "relu"
    time: bool = False
    group_norm: bool = False
    potentials: int = 1
    decay: float = 0.0
    damping: float | None = None

    def __post_init__(self):
        check_choice("field", self.field, FIELDS)
        check_choice("encoder", self.encoder, ENCODERS)
        check_positive(pieces=self.pieces)
        field_options(self)


_OWN = ("field", "encoder", "features", "patch", "pieces", "unit_norm")


def field_options(config: ModelConfig) -> dict[str, Any]:
    """The options that a configuration gives to its field's class.

    **Raises:** `ValueError` for one that was set but is not the field's.
    """
    accepted = inspect.signature(FIELDS[config.field]).parameters
    options = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if item.name in _OWN or value is None:
            continue
        if item.name in accepted:
            options[item.name] = value
        elif value != item.default:
            raise ValueError(
                f"{item.name} must be left out for field {config.field!r}, which has "
                f"no such option; it is {value!r}."
            )
    return options


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

    **Raises:** `ValueError` for a configuration that fits no such image or solver.
    """
    for index in range(config.pieces):
        solver.piece(index, config.pieces)
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
    kind: Any = FIELDS[config.field]
    options = field_options(config)
    if config.pieces == 1:
        return kind(shape, key=key, **options)
    keys = jr.split(key, config.pieces)
    return PiecewiseField([kind(shape, key=key, **options) for key in keys])
