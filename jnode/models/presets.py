"""Named models: each is a configuration and a solver.

`jnode.build(*MODELS["ortho"], image_shape=(28, 28, 1), classes=10, key=key)` builds
one.
"""

import dataclasses

from jnode.models.config import ModelConfig
from jnode.solvers import Solver

# Certified accuracy on real images: a flow whose weights change with time, each segment
# one Euler step with hL = 2 (a convex potential layer). Wide states with few hidden
# units are most accurate for their cost; the size of a kernel does not matter to a
# product by frequencies.
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
    # The same, for all of MNIST: two segments, wider, and with twice the L.
    "ortho_mnist": (
        ModelConfig(
            field="ortho",
            features=64,
            hidden=32,
            segments=(2,),
            position=True,
            lipschitz=1.0,
            activation="maxmin",
        ),
        Solver("rk4", steps=2),
    ),
    # Gradient flows of different weights, one after another, each for one Euler step at
    # the edge of circle contractivity: hL = 2, which preserves distances best.
    "contractive": (
        ModelConfig(field="gradient_flow", lipschitz=6.0, hidden=64, segments=(3,)),
        Solver("euler", steps=3),
    ),
    # A single such step is no ODE but a layer (Meunier et al., ICML 2022).
    "convex_potential_layer": (
        ModelConfig(field="gradient_flow", lipschitz=2.0, hidden=64),
        Solver("euler", steps=1),
    ),
    "certified_mnist": (_CERTIFIED, Solver("euler", steps=8)),
    "certified_cifar10": (
        dataclasses.replace(_CERTIFIED, features=128, hidden=32),
        Solver("euler", steps=8),
    ),
    # Free fields, certified in Linf by intervals. The encoder is linear
    # (space-to-depth), and all nonlinearity is in the trajectory: three steps of fields
    # on each patch, and one of a dense field. Half of the channels begin at zero; what
    # is robust is written there, and the intervals of the pixels can be left out.
    "linf_mnist": (
        ModelConfig(
            field="free",
            features=32,
            hidden=96,
            kernel_size=1,
            segments=(3,),
            dense=1,
            dense_hidden=384,
            unit_norm=False,
        ),
        Solver("euler", steps=4),
    ),
    # The architecture of Ortho-ODE without its constraint.
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
