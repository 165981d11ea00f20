"""How training went."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jnode.report.figures.base import legend, new_figure, plain, style, tidy
from jnode.report.run_report import RunReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = (
    ("accuracy", "accuracy on training batches (%)"),
    ("loss", "loss (each run has its own)"),
    ("nfe", "field evaluations a solve (NFE)"),
)


def training(runs: Sequence[RunReport]) -> "Figure":
    """Accuracy, loss and field evaluations of the training batches against the epoch.

    **Raises:** `ValueError` where no run has metrics.
    """
    if not any(run.metrics for run in runs):
        raise ValueError("runs must hold metrics, and none does.")
    figure = new_figure(11.4, 3.5)
    handles = {}
    panels = figure.subplots(1, len(PANELS))
    for axes, (key, label) in zip(panels, PANELS, strict=True):
        for i, run in enumerate(runs):
            rows = [row for row in run.metrics if row.get(key) is not None]
            if not rows:
                continue
            scale = 100 if key == "accuracy" else 1
            x = [row["epoch"] for row in rows]
            y = [scale * row[key] for row in rows]
            look = style(i) | {"markevery": max(len(x) // 6, 1)}
            handles[plain(run.name)] = axes.plot(x, y, **look)[0]
        tidy(axes)
        axes.set_title(label, fontsize=10, loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if key == "nfe":
            axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    if handles:
        legend(figure, handles)
    return figure
