"""Models trained once and evaluated with every solver; and numbers of Euler steps.

Bounded models are evaluated with fixed steps only, as these are certified.
"""

import dataclasses

from jnode.study import Measures, configure, grids
from jnode.train import DataConfig

DIGITS, STEPS = DataConfig("mnist"), (1, 2, 4, 8, 16, 32)
odenet, ortho, contractive = (
    configure(model, "natural", DIGITS, channels=1, epochs=2)
    for model in ("odenet", "ortho", "contractive")
)
measures = Measures(grids.few_steps(0.05), 100, via=grids.FINEST)
proven = dataclasses.replace(measures, radii=(0.5,))
fixed, adaptive = ("euler", "heun", "rk4"), ("bosh3", "tsit5", "dopri5")
tolerances = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)

cells = [
    *grids.coarse(DIGITS, 2, [("odenet", 1), ("odenet", 4)], STEPS, measures),
    *grids.solvers("odenet", odenet, fixed, STEPS, adaptive, tolerances, measures),
    *grids.solvers("ortho", ortho, fixed, STEPS, (), (), proven),
    # At least one step for each of its four segments.
    *grids.solvers("contractive", contractive, fixed, STEPS[2:], (), (), proven),
]
