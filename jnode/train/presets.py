"""Training runs that are known to work, by name."""

from jnode.models import ModelConfig
from jnode.solvers import Solver
from jnode.train.config import DataConfig, TrainConfig
from jnode.train.losses import LossConfig

PRESETS: dict[str, TrainConfig] = {
    # The paper's model: both maps of the field orthogonal.
    "ortho": TrainConfig(
        data=DataConfig(pad=1),
        model=ModelConfig(field="ortho", lipschitz=0.5, activation="maxmin"),
        solver=Solver("rk4", steps=2),
        loss=LossConfig("margin", rho=0.6, temperature=4.0),
        epochs=20,
        learning_rate=5e-3,
    ),
    # A gradient flow at the edge of circle contractivity: hL = 2, nonexpansive.
    "contractive": TrainConfig(
        data=DataConfig(pad=1),
        model=ModelConfig(field="gradient_flow", lipschitz=8.0, hidden=64),
        solver=Solver("euler", steps=4),
        loss=LossConfig("margin", rho=0.86, temperature=8.0),
        epochs=40,
        learning_rate=5e-3,
    ),
    # Certified accuracy on real images: a flow whose weights change with time, each
    # piece one Euler step with hL = 2 (a convex potential layer).
    "certified_mnist": TrainConfig(
        data=DataConfig("mnist", pad=1),
        model=ModelConfig(
            field="gradient_flow", features=64, hidden=32, pieces=(6,), lipschitz=12.0
        ),
        solver=Solver("euler", steps=6),
        loss=LossConfig("margin", rho=0.7, temperature=8.0),
        epochs=16,
        learning_rate=5e-3,
        weight_decay=0.0,
    ),
    "certified_cifar10": TrainConfig(
        data=DataConfig("cifar10", flip=True, pad=2),
        model=ModelConfig(
            field="gradient_flow", features=64, hidden=32, pieces=(8,), lipschitz=16.0
        ),
        solver=Solver("euler", steps=8),
        loss=LossConfig("margin", rho=0.5, temperature=1.5),
        epochs=36,
        learning_rate=6e-3,
        weight_decay=0.0,
    ),
    # The Ortho-ODE's architecture with the constraint off, trained as usual.
    "twin": TrainConfig(
        model=ModelConfig(field="free", padding="circular"),
        solver=Solver("rk4", steps=2),
        loss=LossConfig("natural"),
    ),
    # As in the neural ODE literature (Chen et al., NeurIPS 2018), adaptive.
    "odenet": TrainConfig(
        model=ModelConfig(
            field="free",
            encoder="conv",
            features=64,
            time=True,
            group_norm=True,
            unit_norm=False,
        ),
        solver=Solver("dopri5"),
        loss=LossConfig("natural"),
        epochs=10,
        learning_rate=1e-3,
    ),
    # A time-invariant field with a steady state (TisODE; Yan et al., ICLR 2020).
    "tisode": TrainConfig(
        model=ModelConfig(field="free", encoder="conv", features=32, unit_norm=False),
        solver=Solver("rk4", steps=4),
        loss=LossConfig("steady_state", weight=0.1),
        epochs=10,
        learning_rate=1e-3,
    ),
    # Ends that are Lyapunov-stable (after SODEF; Kang et al., NeurIPS 2021).
    "sodef": TrainConfig(
        model=ModelConfig(field="free", encoder="conv", features=32, unit_norm=False),
        solver=Solver("rk4", steps=4),
        loss=LossConfig("lyapunov", weight=0.05),
        epochs=10,
        learning_rate=1e-3,
    ),
}


def get_preset(name: str) -> TrainConfig:
    """The preset of this name; `ValueError` with the known names for another."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {name!r}.")
    return PRESETS[name]
