"""The models of the study and their trainings: alike but for what is compared.

All have the same encoder (isometric), width and head, and as many parameters as two
3x3 convolutions of that width; only the field and its solver differ.
"""

import dataclasses

from jnode.models import ModelConfig
from jnode.solvers import Solver
from jnode.train import DataConfig, LossConfig, TrainConfig

RK4 = Solver("rk4", steps=2)
FREE = {"field": "free", "padding": "circular"}
WIDTHS = {1: 32, 3: 64}
"""Channels of the state, by the image's channels."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model: its field's options, its solver, what its loss adds to cross-entropy."""

    options: dict
    solver: Solver = RK4
    loss: str = "natural"
    factor: int = 1
    """Inner channels, as a multiple of the state's; negative to divide by it."""


MODELS: dict[str, Entry] = {
    "cnn": Entry(
        FREE,
        Solver("euler", 1),
    ),
    "resnet": Entry(
        FREE | {"pieces": (4,)},
        Solver("euler", steps=4),
        factor=-4,
    ),
    "odenet": Entry(FREE),
    "tisode": Entry(
        FREE,
        loss="steady_state",
    ),
    "ortho": Entry({"field": "ortho", "lipschitz": 1.0}),
    "contractive": Entry(
        {"field": "gradient_flow", "lipschitz": 8.0},
        Solver("euler", steps=4),
        factor=2,
    ),
    "skew": Entry(
        {"field": "skew", "lipschitz": 2.0, "damping": 0.5},
    ),
}

TRAININGS: dict[str, dict] = {
    "natural": {},
    # Originals and, as often, noisy ones (after Yan et al., ICLR 2020).
    "noise": {"inputs": "noise", "sigma": 100 / 255, "share": 0.5},
    "adversarial": {"inputs": "adversarial", "steps": 5},
    "margin": {"name": "margin"},
}


def configure(
    model: str,
    training: str,
    data: DataConfig,
    *,
    channels: int,
    epochs: int,
    seed: int = 0,
    epsilon: float = 0.2,
    lipschitz: float | None = None,
    rho: float = 0.5,
    temperature: float = 1.0,
    solver: Solver | None = None,
) -> TrainConfig:
    """The training run of a model of `MODELS` under a training of `TRAININGS`.

    **Arguments:** their names, the data, the channels of their images, the epochs and
    the seed; the Linf budget of adversarial training; another Lipschitz constant, or
    solver, than the model's; radius and temperature of margin training.

    **Raises:** `ValueError` for an unknown name.
    """
    for name, known in ((model, MODELS), (training, TRAININGS)):
        if name not in known:
            raise ValueError(f"{name!r} must be one of {', '.join(known)}.")
    entry, width = MODELS[model], WIDTHS[channels]
    options = dict(entry.options)
    if lipschitz is not None:
        options["lipschitz"] = lipschitz
    if entry.factor != 1:
        factor = entry.factor
        options["hidden"] = width * factor if factor > 0 else width // -factor
    loss = {"name": entry.loss, **TRAININGS[training]}
    if training == "margin":
        loss |= {"rho": rho, "temperature": temperature}
    return TrainConfig(
        data=data,
        model=ModelConfig(features=width, **options),
        solver=solver or entry.solver,
        loss=LossConfig(epsilon=epsilon, **loss),
        epochs=epochs,
        learning_rate=5e-3,
        seed=seed,
    )
