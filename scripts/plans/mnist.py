"""All models on MNIST: AutoAttack, certificates, and the protocol of TisODE.

Three seeds for the models that are trained naturally and for margins, one for PGD and
TRADES. The cells are ordered by how much they answer for their time: 12 hours of one
core for the first seed, and 10 for each of the others.
"""

from jnode.study import MODELS, Measures, grids
from jnode.train import DataConfig

SAME, BOUNDED = ("free", "ortho", "contractive"), ("ortho", "contractive")
OTHERS = tuple(name for name in MODELS if name not in SAME)
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
same = [("natural", SAME), ("margin", BOUNDED)]
others = [("natural", OTHERS)]
attacked = [("adversarial", SAME), ("trades", SAME)]

cells = [
    *grids.models(trained=same, seeds=(0,), **COMMON),
    *grids.models(trained=attacked, seeds=(0,), **COMMON),
    *grids.models(trained=others, seeds=(0,), **COMMON),
    *grids.models(trained=[*same, *others], seeds=(1, 2), **COMMON),
]
