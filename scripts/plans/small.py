"""Each question once, small, on the embedded MNIST digits: 16 minutes on one core."""

from jnode.study import Measures, configure, grids
from jnode.train import DataConfig

DIGITS, EPOCHS = DataConfig(), 8
models = grids.models(
    DIGITS,
    channels=1,
    epochs=EPOCHS,
    trained=[
        ("natural", ("cnn", "odenet", "ortho", "contractive")),
        ("margin", ("contractive",)),
        ("adversarial", ("odenet",)),
    ],
    seeds=(0,),
    measures=Measures(
        grids.TISODE,
        200,
        budgets=(("linf", 0.1),),
        num_ensemble=50,
        radii=grids.DIGIT_RADII,
    ),
)
lipschitz = grids.lipschitz(
    DIGITS,
    channels=1,
    epochs=EPOCHS,
    constants=(0.25,),
    seeds=(0,),
    measures=Measures(
        grids.few_steps(0.1), 100, radii=(0.5,), tightness=True, adaptive=grids.DOPRI5
    ),
)
odenet = configure("odenet", "natural", DIGITS, channels=1, epochs=EPOCHS)
measures = Measures(grids.few_steps(0.05), 100, via=grids.FINEST)
solvers = grids.solvers(
    "odenet", odenet, ("euler", "rk4"), (1, 4), ("dopri5",), (1e-2,), measures
)
steps = grids.coarse(
    DIGITS, [("odenet", 1)], (1, 8), measures, channels=1, epochs=EPOCHS
)

cells = [*models, *lipschitz, *solvers, *steps]
