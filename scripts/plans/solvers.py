"""Models of the plan `mnist` evaluated with every solver; and numbers of Euler steps.

In the folder of that plan nothing is trained again but the models of few Euler steps.
A bounded model with fixed steps is certified too.
"""

import dataclasses

from jnode.study import Measures, configure, grids
from jnode.train import DataConfig

DIGITS, STEPS = DataConfig("mnist", pad=1), (1, 2, 4, 8, 16)
COMMON = {"channels": 1, "epochs": 8, "logit_scale": 4.0}
odenet, free, ortho, contractive = (
    configure(model, "natural", DIGITS, **COMMON)
    for model in ("odenet", "free", "ortho", "contractive")
)
measures = Measures(grids.few_steps(0.1), 250, via=grids.FINEST)
proven = dataclasses.replace(measures, radii=(0.5,))
adaptive, tolerances = ("bosh3", "dopri5"), (1e-1, 1e-2, 1e-3, 1e-4)
fixed = ("euler", "rk4")

cells = [
    *grids.solvers(
        "odenet",
        odenet,
        ("euler", "heun", "rk4"),
        STEPS,
        adaptive,
        tolerances,
        measures,
    ),
    *grids.solvers("free", free, fixed, STEPS, adaptive, tolerances, measures),
    *grids.solvers("ortho", ortho, fixed, STEPS, adaptive, tolerances, proven),
    # At least one step for each of its four segments.
    *grids.solvers("contractive", contractive, fixed, STEPS[2:], (), (), proven),
    *grids.coarse(DIGITS, [("odenet", 1), ("odenet", 4)], STEPS, measures, **COMMON),
]
