"""The Ortho field from L = 0.25 to 8, and without a constraint."""

from jnode.study import Measures, grids
from jnode.train import DataConfig

measures = Measures(
    grids.few_steps(0.1),
    300,
    radii=(0.25, 0.5, 1.0),
    tightness=True,
    adaptive=grids.DOPRI5,
)

cells = list(
    grids.lipschitz(
        DataConfig("mnist"),
        constants=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
        epochs=2,
        seeds=(0, 1, 2),
        measures=measures,
    )
)
