"""Most models on CIFAR-10."""

from jnode.study import grids

SOME = ("cnn", "odenet", "tisode", "ortho", "contractive")
TRAINED = [("natural", SOME), ("margin", SOME[3:]), ("adversarial", ("odenet",))]

cells = list(grids.photographs("cifar10", 4, TRAINED))
