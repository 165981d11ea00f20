"""Figures of trajectories: growth of distances, and lengths of steps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jnode.report.results import RunReport
from jnode.report.style import (
    INK,
    colour,
    legend,
    new_figure,
    plain,
    plain_ticks,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRONWALL = "Gronwall's envelope $e^{Lt}$"
LOG_NORM = "log-norm envelope $e^{\\mu t}$"
COLUMNS = 3
"""The most panels side by side."""


def growth(run: RunReport) -> np.ndarray:
    """‖y(t) − z(t)‖ / ‖y(0) − z(0)‖ of the pairs that differ at the start."""
    assert run.pictures is not None
    distances = run.pictures.distances
    distances = distances[distances[:, 0] > 0]
    return distances / distances[:, :1]


def sharper(run: RunReport) -> np.ndarray | None:
    """The smaller of the two envelopes, or `None` where neither is finite."""
    assert run.pictures is not None
    both = np.stack([run.pictures.gronwall, run.pictures.log_norm])
    finite = both[np.isfinite(both).all(axis=1)]
    return finite.min(axis=0) if len(finite) else None


def _panels(runs: Sequence[RunReport], edge: float, height: float):
    """A figure with a panel for each run that has pictures, all on one scale; and which
    runs these are. Its height is that of its edge and of its rows.

    **Raises:** `ValueError` where no run has pictures.
    """
    indices = [i for i, run in enumerate(runs) if run.pictures is not None]
    if not indices:
        raise ValueError("runs must hold pictures, and none does.")
    columns = min(len(indices), COLUMNS)
    rows = -(-len(indices) // columns)
    figure = new_figure(max(1.2 + 3.4 * columns, 5.5), edge + height * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for spare in panels[len(indices) :]:
        spare.remove()
    return figure, panels[: len(indices)], indices


def trajectories(runs: Sequence[RunReport]) -> "Figure":
    """Growth of the distance within each pair, with its envelopes: one panel for each
    run.

    Panels share their axes. An envelope far above all measured values leaves the frame,
    and a note in the panel gives its final value.

    **Raises:** `ValueError` where no run has pictures.
    """
    figure, panels, indices = _panels(runs, 0.9, 3)
    values = [np.ones(1), *(growth(runs[i]).ravel() for i in indices)]
    values += [s for i in indices if (s := sharper(runs[i])) is not None]
    finite = np.concatenate(values)
    finite = finite[np.isfinite(finite) & (finite > 0)]
    low, high = float(finite.min()), float(finite.max())
    logarithmic = high > 8 or low < 1 / 8
    if logarithmic:
        panels[0].set_yscale("log")
        plain_ticks(panels[0].yaxis)
        panels[0].set_ylim(low / 1.5, high * 2.2)
    else:
        panels[0].set_ylim(0, 1.3 * high)
    handles = {}
    for axes, i in zip(panels, indices, strict=True):
        handles |= _panel(axes, runs[i], colour(i))
    for axes in panels[::COLUMNS]:
        axes.set_ylabel("‖y(t) − z(t)‖ / ‖y(0) − z(0)‖")
    legend(figure, handles)
    return figure


def _panel(axes, run: RunReport, shade: str) -> dict:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    p = run.pictures
    assert p is not None
    axes.plot(p.times, growth(run).T, color=shade, alpha=0.55, linewidth=1.1)
    handles: dict[str, Any] = {
        "measured pairs": Line2D([], [], color=INK, linewidth=1.1)
    }
    envelope = sharper(run)
    low, high = axes.get_ylim()
    notes = []
    if envelope is None:
        notes.append("no envelope: nothing bounds this field")
    else:
        axes.fill_between(p.times, low, envelope, color=shade, alpha=0.1, linewidth=0)
        handles["where the flow must stay"] = Patch(color=INK, alpha=0.12)
    curves = ((GRONWALL, p.gronwall, "-", "$e^{Lt}$"),)
    if np.isfinite(p.log_norm).all() and not np.allclose(p.log_norm, p.gronwall):
        curves += ((LOG_NORM, p.log_norm, "--", "$e^{\\mu t}$"),)
    for label, curve, dashes, short in curves:
        if np.isfinite(curve).all():
            look = {"color": INK, "linewidth": 1.8, "linestyle": dashes}
            handles[label] = axes.plot(*_smooth(p.times, curve), **look)[0]
            if curve[-1] > high:
                notes.append(
                    f"{short} leaves the frame:\n{_number(float(curve[-1]))} at the end"
                )
    if notes:
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2}
        place = {"transform": axes.transAxes, "ha": "right", "va": "top"}
        look = {"fontsize": 8.5, "color": INK, "bbox": box}
        axes.text(0.97, 0.97, "\n".join(notes), **place, **look)
    tidy(axes)
    axes.set_ylim(low, high)
    axes.set_xlim(float(p.times[0]), float(p.times[-1]))
    axes.set_title(plain(run.name), fontsize=10, loc="left", color=shade)
    axes.set_xlabel("time t of the solve")
    return handles


def _number(value: float) -> str:
    return f"{value:,.0f}" if 100 <= value < 1e6 else f"{value:.3g}"


def _smooth(times, curve):
    """Interpolates an exponential between the times at which it was computed."""
    fine = np.linspace(times[0], times[-1], 200)
    return fine, np.exp(np.interp(fine, times, np.log(np.maximum(curve, 1e-300))))


def step_lengths(runs: Sequence[RunReport]) -> "Figure":
    """The length of each step on a logarithmic scale: one panel for each run.

    Blocks are separated by a gap and numbered.

    **Raises:** `ValueError` where no run has pictures.
    """
    figure, panels, indices = _panels(runs, 0.5, 2.6)
    panels[0].set_yscale("log")
    plain_ticks(panels[0].yaxis)
    for axes, i in zip(panels, indices, strict=True):
        p = runs[i].pictures
        assert p is not None
        # A step of length zero has no bar on a logarithmic scale.
        lengths = np.where(p.step_lengths > 0, p.step_lengths, np.nan)
        places = np.arange(len(lengths)) + p.step_blocks
        axes.bar(places, lengths, width=0.8, color=colour(i))
        blocks = range(int(p.step_blocks.max()) + 1)
        shown = places[:: max(1, len(places) // 8)] if len(blocks) == 1 else []
        axes.set_xticks(shown, [f"{n + 1:.0f}" for n in shown])
        if len(blocks) > 1:
            middles = [places[p.step_blocks == k].mean() for k in blocks]
            axes.set_xticks(middles, [f"block {k + 1}" for k in blocks])
        tidy(axes)
        axes.set_title(plain(runs[i].name), fontsize=10, loc="left", color=colour(i))
        axes.set_xlabel("step")
    for axes in panels[::COLUMNS]:
        axes.set_ylabel("distance that the state moves")
    return figure
