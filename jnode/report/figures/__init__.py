"""The pictures of a report: each function returns a Matplotlib figure."""

from jnode.report.figures.base import to_png as to_png
from jnode.report.figures.certificate import certificate as certificate
from jnode.report.figures.certified import certified as certified
from jnode.report.figures.images import images as images
from jnode.report.figures.robustness import robustness as robustness
from jnode.report.figures.training import training as training
from jnode.report.figures.trajectories import trajectories as trajectories
