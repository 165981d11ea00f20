"""The Ortho field from L = 0.25 to 8, and without a constraint."""

from jnode.study import Measures, grids
from jnode.train import DataConfig

measures = Measures(
    grids.few_steps(0.1),
    500,
    radii=(0.25, 0.5, 1.0),
    tightness=True,
    adaptive=grids.DOPRI5,
)

cells = list(
    grids.lipschitz(
        DataConfig("mnist", pad=1),
        channels=1,
        epochs=8,
        constants=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
        seeds=(0, 1, 2),
        measures=measures,
        logit_scale=4.0,
    )
)
