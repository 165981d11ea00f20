"""What is proven, below what attacks left standing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jnode.report.figures.base import (
    INK,
    legend,
    new_figure,
    plain,
    share_axis,
    style,
    tidy,
)
from jnode.report.run_report import RunReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def certified(runs: Sequence[RunReport]) -> "Figure":
    """Certified accuracy against the L2 radius, the attacked accuracy above it.

    Runs without a certificate appear with their attacked accuracy alone.

    **Raises:** `ValueError` where no run has a certificate.
    """
    if not any(run.evaluation["certified_accuracy"] for run in runs):
        raise ValueError("runs must hold a certificate, and none does.")
    figure = new_figure(9, 4.6)
    from matplotlib.lines import Line2D

    axes = figure.add_subplot()
    handles, reach = {}, 0.0
    for i, run in enumerate(runs):
        e = run.evaluation
        attacked = [(0.0, e["clean_accuracy"])]
        attacked += [
            (row["epsilon"], row["robust_accuracy"])
            for row in e["worst_case"]
            if row["norm"] == "l2"
        ]
        u, v = np.asarray(sorted(attacked)).T
        look = style(i)
        handles[plain(run.name)] = Line2D([], [], **look)
        if len(u) > 1:
            axes.plot(u, 100 * v, linestyle="--", **look, zorder=3)
            reach = max(reach, float(u[-1]))
        proven = [
            (r["radius"], r["certified_accuracy"]) for r in e["certified_accuracy"]
        ]
        if not proven:
            continue
        x, y = np.asarray(sorted(proven)).T
        axes.plot(x, 100 * y, color=look["color"], linewidth=2.5, zorder=3)
        # Past where nothing is proven any more there is nothing to see.
        reach = max(reach, float(x[y > 0.01].max(initial=x[0])))
        if len(u) > 1:
            grid = x[x <= u[-1]]
            gap = (100 * y[: len(grid)], 100 * np.interp(grid, u, v))
            axes.fill_between(grid, *gap, color=look["color"], alpha=0.13, lw=0)
    tidy(axes)
    share_axis(axes, "accuracy on test images (%)")
    axes.set_xlim(0, 1.03 * reach if reach > 0 else 1)
    axes.set_xlabel("$L_2$ radius (pixels in [0, 1])")
    ink = {"color": INK, "linewidth": 2}
    handles["attacked (upper bound)"] = Line2D([], [], linestyle="--", **ink)
    handles["certified (lower bound)"] = Line2D([], [], **ink)
    legend(figure, handles)
    return figure
