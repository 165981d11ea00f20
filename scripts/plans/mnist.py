"""All models on MNIST: AutoAttack, certificates, and the protocol of TisODE.

Three seeds for the models that are trained naturally and for margins, one for PGD and
TRADES. The cells are ordered by how much they answer for their time; the first seven
take an hour of one core.
"""

from jnode.study import Measures, grids
from jnode.train import DataConfig

SAME, BOUNDED = ("free", "ortho", "contractive"), ("ortho", "contractive")
QUICK = ("skew", "cnn")
SLOW = ("resnet", "odenet", "tisode", "cnn_wide")
COMMON = {
    "dataset": DataConfig("mnist", pad=1),
    "channels": 1,
    "epochs": 8,
    "epsilon": 0.2,
    "logit_scale": 4.0,
    "measures": Measures(
        (*grids.TISODE, "pgd:l2:0.5:40", "pgd:l2:1:40"),
        1000,
        budgets=(("linf", 0.1), ("linf", 0.2)),
        num_ensemble=1000,
        radii=grids.DIGIT_RADII,
    ),
}
quick = [("natural", SAME), ("margin", BOUNDED), ("natural", QUICK)]
attacked = [("adversarial", SAME), ("trades", SAME)]
slow = [("natural", SLOW)]

cells = [
    *grids.models(trained=[*quick, *attacked, *slow], seeds=(0,), **COMMON),
    *grids.models(trained=[*quick, *slow], seeds=(1, 2), **COMMON),
]
