"""Robust accuracy against the budget of the attacks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jnode.report.figures.base import legend, new_figure, plain, share_axis, style, tidy
from jnode.report.run_report import RunReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {
    "linf": ("Adversarial, $L_\\infty$", "budget ε in $L_\\infty$ (pixels in [0, 1])"),
    "l2": ("Adversarial, $L_2$", "budget ε in $L_2$ (pixels in [0, 1])"),
    "sigma": ("Gaussian noise", "standard deviation σ (pixels in [0, 1])"),
}


def robustness(runs: Sequence[RunReport]) -> "Figure":
    """Worst-case accuracy against epsilon: a panel a norm, a curve a run.

    **Raises:** `ValueError` where no run was attacked.
    """
    rows = [row for run in runs for row in run.evaluation["worst_case"]]
    norms = [norm for norm in AXES if any(row["norm"] == norm for row in rows)]
    if not norms:
        raise ValueError("runs must hold an attack in a known norm, and none does.")
    figure = new_figure(1.2 + 3.4 * len(norms), 3.9)
    panels = figure.subplots(1, len(norms), sharey=True, squeeze=False)[0]
    handles = {}
    for axes, norm in zip(panels, norms, strict=True):
        for i, run in enumerate(runs):
            points = [
                (row["epsilon"], row["robust_accuracy"])
                for row in run.evaluation["worst_case"]
                if row["norm"] == norm
            ]
            if not points:
                continue
            points = sorted([(0.0, run.evaluation["clean_accuracy"]), *points])
            x, y = zip(*points, strict=True)
            percents = [100 * value for value in y]
            line = axes.plot(x, percents, **style(i), clip_on=False, zorder=3)[0]
            handles[plain(run.name)] = line
        title, label = AXES[norm]
        tidy(axes)
        share_axis(axes, "accuracy (%)" if axes is panels[0] else "")
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=5)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel(label)
    legend(figure, handles)
    return figure
