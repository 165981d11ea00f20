"""All models on CIFAR-10 (50,000 images), naturally trained and for margins."""

from jnode.study import grids

FREE, BOUNDED = ("cnn", "resnet", "odenet", "free"), ("ortho", "contractive")
TRAINED = [("natural", BOUNDED), ("margin", BOUNDED), ("natural", FREE)]

cells = list(grids.photographs("cifar10", 20, TRAINED, logit_scale=7.0))
