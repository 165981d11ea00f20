"""A training run as plain data."""

import dataclasses
import types
import typing
from typing import Any

from jnode.models import ModelConfig
from jnode.solvers import Solver
from jnode.train.losses import LossConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What images to train on.

    - `name`: a name from `jnode.data.NAMES`.
    - `dir`: the TFDS folder; by default `TFDS_DATA_DIR`, else ~/tensorflow_datasets.
    - `num_train`: how many of the training images to use; by default all.
    - `flip`: random horizontal flips.
    - `pad`: random crops after padding by so many pixels.
    """

    name: str = "mnist5k"
    dir: str | None = None
    num_train: int | None = None
    flip: bool = False
    pad: int = 0

    def __post_init__(self):
        if self.pad < 0:
            raise ValueError(f"pad must be at least 0, not {self.pad}.")
        if self.num_train is not None and self.num_train < 1:
            raise ValueError(f"num_train must be at least 1, not {self.num_train}.")


# Frozen, so they may be shared as defaults.
_DATA, _MODEL, _LOSS = DataConfig(), ModelConfig(), LossConfig()
_SOLVER = Solver("rk4", steps=4)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A whole training run.

    - `data`, `model`, `solver`, `loss`: the parts.
    - `epochs`, `batch_size`: how long, and images a step, over all devices.
    - `accumulate`: in how many parts each device takes its share of a batch, one after
        another; more need less memory.
    - `learning_rate`: the peak of a cosine schedule with linear warm-up (AdamW).
    - `weight_decay`: of AdamW, on weights alone (`jnode.train.state.decays`).
    - `seed`: of the weights, the order of the images and the noise.
    - `skip_nonfinite`: leave out a step whose loss or gradient is not finite, or whose
        loss is above `max_loss`, and go on; by default training stops there.
    - `max_loss`: the loss above which it counts as exploded.
    - `max_failed`: the share of an epoch's solves that may end at the solver's
        `max_steps`, where they count with the state that they reached.
    """

    data: DataConfig = _DATA
    model: ModelConfig = _MODEL
    solver: Solver = _SOLVER
    loss: LossConfig = _LOSS
    epochs: int = 15
    batch_size: int = 128
    accumulate: int = 1
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    seed: int = 0
    skip_nonfinite: bool = False
    max_loss: float = 1e4
    max_failed: float = 0.01

    def __post_init__(self):
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, not {getattr(self, name)}."
                )
        unbounded = self.model.field == "free" or self.model.encoder == "conv"
        if self.loss.name == "margin" and (self.solver.adaptive or unbounded):
            raise ValueError(
                "the margin loss asks for a margin in proportion to a certified "
                f"constant, and {self.solver} with field {self.model.field!r} and "
                f"encoder {self.model.encoder!r} has none: take a fixed-step solver, a "
                "constrained field and the isometric encoder, or loss.name natural."
            )
        last = self.model.dense or self.model.pieces[-1]
        if self.loss.name == "steady_state" and (self.model.time or last > 1):
            raise ValueError(
                "model.time must be left out, and the last block must have one piece, "
                "for the steady_state loss, whose field must not change with time."
            )
        for name in ("learning_rate", "max_loss"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}.")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"max_failed must be in [0, 1], not {self.max_failed}.")


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """The frozen dataclass `cls` from what `dataclasses.asdict` gave.

    **Raises:** `ValueError` for a name that the class does not have.
    """
    hints = typing.get_type_hints(cls)
    unknown = set(values) - set(hints)
    if unknown:
        raise ValueError(
            f"{cls.__name__} has no {', '.join(sorted(unknown))}: the configuration "
            "comes from another version."
        )
    parts = {}
    for name, value in values.items():
        hint = hints[name]
        if isinstance(hint, types.UnionType):
            hint = next(h for h in typing.get_args(hint) if h is not type(None))
        nested = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        nested = nested and isinstance(value, dict)
        if isinstance(value, list):  # as JSON writes tuples
            value = tuple(value)
        parts[name] = from_dict(hint, value) if nested else value
    return cls(**parts)
