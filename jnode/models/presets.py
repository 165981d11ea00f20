"""Models that are known to work, by name: a configuration, and its solver.

`jnode.build(*MODELS["ortho"], image_shape=(28, 28, 1), classes=10, key=key)` builds
one.
"""

import dataclasses

from jnode.models.config import ModelConfig
from jnode.solvers import Solver

# Certified accuracy on real images: a flow whose weights change with time, each segment
# one Euler step with hL = 2 (a convex potential layer). Wide states and few hidden
# units pay; the width of a kernel costs nothing among the frequencies.
_CERTIFIED = ModelConfig(
    field="gradient_flow",
    features=64,
    hidden=16,
    kernel_size=5,
    segments=(8,),
    position=True,
    lipschitz=16.0,
)

MODELS: dict[str, tuple[ModelConfig, Solver]] = {
    # The paper's model: both maps of the field orthogonal.
    "ortho": (
        ModelConfig(field="ortho", lipschitz=0.5, activation="maxmin"),
        Solver("rk4", steps=2),
    ),
    # Gradient flows of different weights, one after another, each for one Euler step at
    # the edge of circle contractivity: hL = 2, which preserves distances best.
    "contractive": (
        ModelConfig(field="gradient_flow", lipschitz=6.0, hidden=64, segments=(3,)),
        Solver("euler", steps=3),
    ),
    # One such step: no ODE but a layer (Meunier et al., ICML 2022).
    "convex_potential_layer": (
        ModelConfig(field="gradient_flow", lipschitz=2.0, hidden=64),
        Solver("euler", steps=1),
    ),
    "certified_mnist": (_CERTIFIED, Solver("euler", steps=8)),
    "certified_cifar10": (
        dataclasses.replace(_CERTIFIED, features=128, hidden=32),
        Solver("euler", steps=8),
    ),
    # Free fields to be certified in Linf by intervals. The image enters as it is, block
    # of pixels by block, so that all that is not linear is the trajectory's: two steps
    # by convolutions, and one of a dense field on the whole state.
    "linf_mnist": (
        ModelConfig(
            field="free",
            features=32,
            hidden=64,
            segments=(2,),
            dense=1,
            dense_hidden=256,
            unit_norm=False,
        ),
        Solver("euler", steps=3),
    ),
    # The Ortho-ODE's architecture with the constraint off.
    "unconstrained": (
        ModelConfig(field="free", padding="circular"),
        Solver("rk4", steps=2),
    ),
    # As in the neural ODE literature (Chen et al., NeurIPS 2018), adaptive.
    "odenet": (
        ModelConfig(
            field="free",
            encoder="conv",
            features=64,
            time=True,
            group_norm=True,
            unit_norm=False,
        ),
        Solver("dopri5"),
    ),
    # A time-invariant field, for a steady state (TisODE; Yan et al., ICLR 2020) or
    # ends that are Lyapunov-stable (SODEF; Kang et al., NeurIPS 2021).
    "autonomous": (
        ModelConfig(field="free", encoder="conv", features=32, unit_norm=False),
        Solver("rk4", steps=4),
    ),
}
