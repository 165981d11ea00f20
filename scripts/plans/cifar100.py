"""The models whose order is in question on CIFAR-100."""

from jnode.study import grids

TRAINED = [("natural", ("cnn", "odenet", "contractive"))]

cells = list(grids.photographs("cifar100", 20, TRAINED, logit_scale=4.0))
