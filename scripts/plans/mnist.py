"""All models on MNIST: the protocol of TisODE, and AutoAttack beside it.

Three seeds for the four models whose order is in question, naturally trained; one seed
for all others.
"""

from jnode.study import MODELS, Measures, grids
from jnode.train import DataConfig

ALL, FEW = tuple(MODELS), ("cnn", "odenet", "ortho", "contractive")
DIGITS = DataConfig("mnist")
COMMON = {
    "channels": 1,
    "measures": Measures(
        grids.TISODE,
        1000,
        budgets=(("linf", 0.1), ("linf", 0.2), ("linf", 0.3)),
        num_ensemble=200,
        radii=grids.DIGIT_RADII,
    ),
}
everything = [("natural", ALL), ("noise", ALL[:-1]), ("margin", FEW[2:])]
robust = {"trained": [("adversarial", FEW[1:2])], "epochs": 8, "epsilon": 0.25}
again = {"trained": [("natural", FEW)], "epochs": 2, "seeds": (1, 2)}

cells = [
    *grids.models(DIGITS, trained=everything, epochs=2, seeds=(0,), **COMMON),
    *grids.models(DIGITS, seeds=(0,), **robust, **COMMON),
    *grids.models(DIGITS, **again, **COMMON),
]
