"""A model as plain data, and the model it describes."""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any

import jax
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
from jnode.linear import SpaceToDepth
from jnode.models.classifier import Head, ODEClassifier
from jnode.models.layers import (
    AbstractLayer,
    ConvEncoder,
    Flatten,
    Lift,
    Linear,
    ODEBlock,
    PositionBias,
)
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
    """The description of a model.

    - `field`: "ortho", "gradient_flow", "skew", "hamiltonian" or "free"
        (unconstrained).
    - `encoder`: "isometric" (norm 1) or "conv" (free, as in the ODENet literature).
    - `features`: channels of the first block's state.
    - `patch`: side of the isometric encoder's blocks of pixels.
    - `segments`: for each ODE block, how many fields with weights of their own it has,
        one after another in time. From block to block the grid's sides are halved, and
        the channels become four times as many.
    - `dense`: segments of one more block at the end, whose fields act on the whole
        state as a vector; by default there is none.
    - `dense_hidden`: hidden units of that block's fields; by default `hidden`.
    - `position`: whether to learn a bias for each position and channel before the first
        block, and before each block on a new grid.
    - `unit_norm`: whether the head's rows have norm 1.

    All segments have equal length and together cover the time from 0 to 1, so the
    solver's steps must be a multiple of their number. `lipschitz` is the constant of
    each field.

    The other options belong to the field and have the same names there (see its class);
    options that it does not have must keep their defaults. `None` selects the field's
    own default. `hidden` is that of the first block: it grows with the channels.

    **Raises:** `ValueError` for a value out of its range, naming the option.
    """

    field: str = "ortho"
    encoder: str = "isometric"
    features: int = 32
    patch: int = 4
    segments: tuple[int, ...] = (1,)
    dense: int = 0
    dense_hidden: int | None = None
    position: bool = False
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
        if not isinstance(self.segments, tuple) or not self.segments:
            raise ValueError(
                "segments must be a tuple of the number of segments of each block, as "
                f"(8,) is for one block, not {self.segments!r}."
            )
        for count in self.segments:
            check_positive(segments=count)
        if self.dense != 0:
            check_positive(dense=self.dense)
        if self.dense_hidden is not None:
            check_positive(dense_hidden=self.dense_hidden)
            if not self.dense or "hidden" not in _accepted(self.field):
                raise ValueError(
                    "dense_hidden must be left out without a dense block, and for a "
                    f"field without inner units; it is {self.dense_hidden}, with dense "
                    f"{self.dense} and field {self.field!r}."
                )
        field_options(self)


def _accepted(field: str) -> Mapping[str, Any]:
    return inspect.signature(FIELDS[field]).parameters


# The options of any field; the others belong to the model.
_FIELD_OPTIONS = {name for field in FIELDS for name in _accepted(field)}


def field_options(config: ModelConfig) -> dict[str, Any]:
    """The options that a configuration gives to its field's class.

    **Raises:** `ValueError` for an option that was set but that the field does not
    have.
    """
    accepted = _accepted(config.field)
    options = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if item.name not in _FIELD_OPTIONS or value is None:
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

    **Raises:** `ValueError` for a configuration that does not fit the image or the
    solver.
    """
    counts = [*config.segments, config.dense] if config.dense else config.segments
    total = sum(counts)
    for k in range(total):
        solver.part(k / total, (k + 1) / total)  # refuses steps that cross a jump
    keys = jr.split(key, 3)
    if config.encoder == "isometric":
        first = Lift(image_shape, patch=config.patch, features=config.features)
    else:
        first = ConvEncoder(image_shape, features=config.features, key=keys[0])
    layers: list[AbstractLayer] = [first]
    shape = jax.eval_shape(first, jnp.zeros(image_shape)).shape
    hidden, done = config.hidden, 0
    for index, count in enumerate(counts):
        if index == len(config.segments):
            hidden = config.dense_hidden or hidden or shape[-1]
            shape = (math.prod(shape),)
            layers.append(Flatten())
        elif index:
            hidden = 4 * hidden if hidden else None
            shape = _halved(shape, config.segments)
            layers.append(Linear(SpaceToDepth(2)))
        if config.position and len(shape) == 3:
            layers.append(PositionBias(shape))
        times = (done / total, (done + count) / total)
        fields_key = jr.fold_in(keys[1], index) if index else keys[1]
        field = _field(config, shape, hidden, count, times, fields_key)
        layers.append(ODEBlock(field, solver.part(*times), *times))
        done += count
    head = Head(math.prod(shape), classes, unit_norm=config.unit_norm, key=keys[2])
    return ODEClassifier(layers, head, image_shape)


def _halved(shape: tuple[int, ...], segments: tuple[int, ...]) -> tuple[int, int, int]:
    height, width, channels = shape
    if height % 2 or width % 2:
        raise ValueError(
            "segments must name no more blocks than the grid can be halved for: "
            f"{segments} names {len(segments)}, and a grid of {height} by {width} "
            "cannot be halved."
        )
    return height // 2, width // 2, 4 * channels


def _field(
    config: ModelConfig,
    shape: tuple[int, ...],
    hidden: int | None,
    count: int,
    times: tuple[float, float],
    key: PRNGKeyArray,
) -> AbstractVectorField:
    kind: Any = FIELDS[config.field]
    options = field_options(config)
    if hidden is not None and "hidden" in _accepted(config.field):
        options["hidden"] = hidden
    if count == 1:
        return kind(shape, key=key, **options)
    fields = [kind(shape, key=k, **options) for k in jr.split(key, count)]
    return PiecewiseField(fields, t0=times[0], t1=times[1])
