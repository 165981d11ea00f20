"""The configuration of a training run, and named presets."""

import dataclasses
import os
from typing import Any

from jnode import data
from jnode._checks import check_choice
from jnode.data import Dataset
from jnode.linear.products import PRECISIONS
from jnode.models import MODELS, ModelConfig
from jnode.solvers import Solver
from jnode.train.losses import LossConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The training images.

    - `name`: a name from `jnode.data.NAMES`.
    - `dir`: the TFDS folder; by default `TFDS_DATA_DIR`, else ~/tensorflow_datasets.
    - `validation`: how many of the training images to hold out: a random choice, but
        always the same. The run is then evaluated and certified on them instead of the
        test images. Use them to choose hyperparameters, then train on all images.
    - `num_train`: how many of the other training images to use; by default all.
    - `flip`: random horizontal flips.
    - `pad`: the number of pixels of padding, mirrored at the border, before random
        crops.

    **Raises:** `ValueError` for a value out of its range, naming the option.
    """

    name: str = "mnist5k"
    dir: str | None = None
    validation: int = 0
    num_train: int | None = None
    flip: bool = False
    pad: int = 0

    def __post_init__(self):
        for name in ("pad", "validation"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must be at least 0, not {getattr(self, name)}."
                )
        if self.num_train is not None and self.num_train < 1:
            raise ValueError(f"num_train must be at least 1, not {self.num_train}.")


def training_images(
    config: DataConfig, data_dir: str | os.PathLike | None = None
) -> Dataset:
    """The images to train on.

    **Arguments:** the configuration; the TFDS folder, by default the configuration's.

    **Raises:** as `jnode.data.load`; `ValueError` if holding out `config.validation`
    images leaves none.
    """
    where = data_dir or config.dir
    dataset = data.load(config.name, split="train", data_dir=where)
    if config.validation:
        dataset, _ = dataset.hold_out(config.validation)
    return dataset if config.num_train is None else dataset.take(config.num_train)


def evaluation_images(
    config: DataConfig, data_dir: str | os.PathLike | None = None
) -> Dataset:
    """The images to evaluate on: the held-out images, if there are any, or the test
    images.

    **Arguments:** the configuration; the TFDS folder, by default the configuration's.

    **Raises:** as `training_images`.
    """
    where = data_dir or config.dir
    if not config.validation:
        return data.load(config.name, split="test", data_dir=where)
    whole = data.load(config.name, split="train", data_dir=where)
    return whole.hold_out(config.validation)[1]


# Frozen, so they may be shared as defaults.
_DATA, _MODEL, _LOSS = DataConfig(), ModelConfig(), LossConfig()
_SOLVER = Solver("rk4", steps=4)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The configuration of a training run.

    - `data`, `model`, `solver`, `loss`: the parts.
    - `epochs`, `batch_size`: the length of training, and the images in each step on all
        devices together.
    - `accumulate`: the number of parts in which each device processes its part of a
        batch, one after another; more parts need less memory.
    - `learning_rate`: the peak of a cosine schedule with linear warm-up (AdamW).
    - `weight_decay`: of AdamW, on weights alone (`jnode.train.step.decays`).
    - `precision`: the precision of products of weights with states in training:
        "highest", full; "high", three bfloat16 passes; or "bfloat16", one pass.
        Weights, states and bounds are always float32, and evaluation and certificates
        always use full precision.
    - `seed`: of the weights, the order of the images and the noise.
    - `skip_nonfinite`: whether to skip a step whose loss or gradient is not finite, or
        whose loss is above `max_loss`; by default training stops there.
    - `max_loss`: the loss above which training counts as diverged.
    - `max_failed`: the fraction of an epoch's solves that may stop at the solver's
        `max_steps`; the loss uses the state that they reached.

    **Raises:** `ValueError` for a value out of its range, and for options that do
    not fit together, naming them.
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
    precision: str = "highest"
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
        check_choice("precision", self.precision, PRECISIONS)
        if self.loss.name == "ibp" and self.solver.adaptive:
            raise ValueError(
                f"the ibp loss needs steps that are known, and {self.solver} chooses "
                "them: give solver.steps, or loss.name natural."
            )
        unbounded = self.model.field == "free" or self.model.encoder == "conv"
        if self.loss.name == "margin" and (self.solver.adaptive or unbounded):
            raise ValueError(
                "the margin loss asks for a margin in proportion to a certified "
                f"constant, and {self.solver} with field {self.model.field!r} and "
                f"encoder {self.model.encoder!r} has none: take a fixed-step solver, a "
                "constrained field and the isometric encoder, or loss.name natural."
            )
        last = self.model.dense or self.model.segments[-1]
        if self.loss.name == "steady_state" and (self.model.time or last > 1):
            raise ValueError(
                "model.time must be left out, and the last block must have one "
                "segment, for the steady_state loss, whose field must not change with "
                "time."
            )
        for name in ("learning_rate", "max_loss"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}.")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"max_failed must be in [0, 1], not {self.max_failed}.")


def _of(name: str, **options: Any) -> TrainConfig:
    """The training of a model of `jnode.models.MODELS`."""
    model, solver = MODELS[name]
    return TrainConfig(model=model, solver=solver, **options)


_CERTIFIED_MNIST = _of(
    "certified_mnist",
    data=DataConfig("mnist", pad=1),
    loss=LossConfig("margin", rho=0.45, logit_scale=5.0),
    epochs=60,
    learning_rate=1e-2,
    weight_decay=0.0,
)

_CERTIFIED_CIFAR10 = _of(
    "certified_cifar10",
    data=DataConfig("cifar10", flip=True, pad=2),
    loss=LossConfig("margin", rho=0.25, logit_scale=7.0),
    epochs=40,
    learning_rate=1e-2,
    weight_decay=0.0,
)

PRESETS: dict[str, TrainConfig] = {
    "ortho": _of(
        "ortho",
        data=DataConfig(pad=1),
        loss=LossConfig("margin", rho=0.35, logit_scale=4.0),
        epochs=20,
        learning_rate=1e-2,
    ),
    "ortho_mnist": _of(
        "ortho_mnist",
        data=DataConfig("mnist", pad=1),
        loss=LossConfig("margin", rho=0.45, logit_scale=5.0),
        epochs=10,
        learning_rate=1e-2,
        weight_decay=0.0,
    ),
    "contractive": _of(
        "contractive",
        data=DataConfig(pad=1),
        loss=LossConfig("margin", rho=0.7, logit_scale=4.0),
        epochs=40,
        learning_rate=1e-2,
    ),
    # The baseline. With four steps of the same weights, the state reaches equilibrium
    # after the first one, and the accuracy is the same.
    "convex_potential_layer": _of(
        "convex_potential_layer",
        data=DataConfig(pad=1),
        loss=LossConfig("margin", rho=0.7, logit_scale=4.0),
        epochs=40,
        learning_rate=1e-2,
    ),
    "certified_mnist": _CERTIFIED_MNIST,
    # The same model, trained for larger radii.
    "certified_mnist_wide": dataclasses.replace(
        _CERTIFIED_MNIST, loss=LossConfig("margin", rho=1.4, logit_scale=3.0)
    ),
    "certified_cifar10": _CERTIFIED_CIFAR10,
    # Of few images for each class: a wide margin and a small logit scale overfit least.
    "certified_cifar100": dataclasses.replace(
        _CERTIFIED_CIFAR10,
        data=DataConfig("cifar100", flip=True, pad=2),
        loss=LossConfig("margin", rho=0.35, logit_scale=4.0),
        epochs=20,
    ),
    # By intervals in Linf, to be certified at 0.1. Without shifts the training images
    # are learned by heart at this radius.
    "linf_mnist": _of(
        "linf_mnist",
        data=DataConfig("mnist", pad=1),
        loss=LossConfig("ibp", epsilon=0.11, kappa=0.2, ramp=0.4),
        epochs=110,
        batch_size=200,
        learning_rate=3e-3,
        weight_decay=0.0,
    ),
    # Trained as usual, for comparison.
    "unconstrained": _of("unconstrained", loss=LossConfig("natural")),
    "odenet": _of("odenet", loss=LossConfig("natural"), epochs=10, learning_rate=1e-3),
    # A steady state (TisODE; Yan et al., ICLR 2020).
    "tisode": _of(
        "autonomous",
        loss=LossConfig("steady_state", weight=0.1),
        epochs=10,
        learning_rate=1e-3,
    ),
    # Ends that are Lyapunov-stable (after SODEF; Kang et al., NeurIPS 2021).
    "sodef": _of(
        "autonomous",
        loss=LossConfig("lyapunov", weight=0.05),
        epochs=10,
        learning_rate=1e-3,
    ),
}


def get_preset(name: str) -> TrainConfig:
    """The preset of this name. **Raises:** `ValueError`, listing the known names, for
    another."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {name!r}.")
    return PRESETS[name]
