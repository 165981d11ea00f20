"""The pictures of a report."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jnode.report.run_report import Pictures, RunReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's colours, which colour-blind people tell apart, and a marker to each.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'Figures need matplotlib: pip install "jnode[report]".'
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _style(i: int) -> dict:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def robustness(runs: Sequence[RunReport], norm: str) -> "Figure":
    """Worst-case robust accuracy against epsilon, a curve a run."""
    figure = _figure(6.2, 3.9)
    axes = figure.add_subplot()
    for i, run in enumerate(runs):
        points = [(0.0, run.evaluation["clean_accuracy"])]
        points += [
            (row["epsilon"], row["robust_accuracy"])
            for row in run.evaluation["worst_case"]
            if row["norm"] == norm
        ]
        x, y = zip(*points, strict=True)
        axes.plot(x, 100 * np.asarray(y), label=run.name, **_style(i))
    name = {"linf": "$L_\\infty$", "l2": "$L_2$"}[norm]
    axes.set_xlabel(f"{name} perturbation ε (pixels in [0, 1])")
    axes.set_ylabel("accuracy under attack (%)")
    return _finish(figure, axes)


def certified(runs: Sequence[RunReport]) -> "Figure":
    """Certified accuracy against the L2 radius, the attacked accuracy above it."""
    figure = _figure(6.2, 3.9)
    axes = figure.add_subplot()
    for i, run in enumerate(runs):
        e = run.evaluation
        proven = [(r["radius"], r["certified_accuracy"]) for r in e["certified_accuracy"]]
        if not proven:
            continue
        x, y = zip(*sorted(proven), strict=True)
        colour = _style(i)["color"]
        axes.plot(x, 100 * np.asarray(y), color=colour, label=f"{run.name}, certified")
        attacked = [(0.0, e["clean_accuracy"])]
        attacked += [
            (r["epsilon"], r["robust_accuracy"])
            for r in e["worst_case"]
            if r["norm"] == "l2"
        ]
        u, v = zip(*attacked, strict=True)
        label = f"{run.name}, attacked"
        axes.plot(u, 100 * np.asarray(v), linestyle="--", label=label, **_style(i))
        inside = np.asarray(x) <= max(u)
        grid = np.asarray(x)[inside]
        upper = np.interp(grid, u, v)
        lower = 100 * np.asarray(y)[inside]
        axes.fill_between(grid, lower, 100 * upper, color=colour, alpha=0.12, lw=0)
    axes.set_xlabel("$L_2$ radius (pixels in [0, 1])")
    axes.set_ylabel("accuracy (%)")
    return _finish(figure, axes)


def _finish(figure, axes):
    axes.set_ylim(-2, 102)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, framealpha=0.9)
    return figure


def images(pictures: Pictures, name: str, *, count: int = 8) -> "Figure":
    """Images, their adversarial twins, and the difference, with the predictions."""
    count = min(count, len(pictures.clean))
    figure = _figure(1.15 * count + 0.9, 4.1)
    rows = figure.subplots(3, count, squeeze=False)
    difference = pictures.adversarial - pictures.clean
    largest = max(float(np.abs(difference[:count]).max()), 1e-9)
    stacks = (
        pictures.clean,
        pictures.adversarial,
        0.5 + difference / (2 * largest),
    )
    for r, stack in enumerate(stacks):
        for c in range(count):
            axes = rows[r][c]
            image = np.clip(stack[c], 0, 1)
            grey = image.shape[-1] == 1
            axes.imshow(image[..., 0] if grey else image, cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            if r < 2:
                guess = (pictures.clean_predictions, pictures.adversarial_predictions)[r]
                right = guess[c] == pictures.labels[c]
                axes.set_title(
                    f"{'✓' if right else '✗'} {guess[c]}",
                    fontsize=10,
                    color=COLOURS[2] if right else COLOURS[1],
                )
    for r, label in enumerate(("clean", "attacked", f"difference\n(±{largest:.2g})")):
        rows[r][0].set_ylabel(label, fontsize=9)
    figure.suptitle(f"{name}: {pictures.attack}", fontsize=10)
    return figure


def trajectories(pictures: Pictures, name: str) -> "Figure":
    """How clean and attacked trajectories part, inside Gronwall's envelope."""
    figure = _figure(4.6, 3.4)
    axes = figure.add_subplot()
    growth = pictures.distances / np.maximum(pictures.distances[:, :1], 1e-12)
    t = pictures.times
    axes.plot(t, growth.T, color=COLOURS[0], alpha=0.45, lw=1)
    axes.plot([], [], color=COLOURS[0], label="clean/attacked pairs (measured)")
    top = float(growth.max())
    if np.isfinite(pictures.gronwall).all():
        sharper = np.minimum(pictures.gronwall, pictures.log_norm)
        top = max(top, float(sharper.max()))
        label = "Gronwall $e^{Lt}$ (certified)"
        axes.plot(t, pictures.gronwall, color=COLOURS[1], lw=2, label=label)
        if (pictures.log_norm < pictures.gronwall).any():
            label = "log-norm $e^{\\mu t}$ (certified)"
            style = dict(color=COLOURS[2], lw=2, ls="--")
            axes.plot(t, pictures.log_norm, label=label, **style)
    if top > 10:
        axes.set_yscale("log")
    else:
        # An envelope far above the sharper one leaves the frame.
        axes.set_ylim(0, 1.4 * top)
    axes.set_xlabel("time t of the solve")
    axes.set_ylabel("‖y(t) − z(t)‖ / ‖y(0) − z(0)‖")
    axes.set_title(name, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def training(runs: Sequence[RunReport]) -> "Figure":
    """Accuracy on the training batches against the epoch."""
    figure = _figure(6.2, 3.4)
    axes = figure.add_subplot()
    for i, run in enumerate(runs):
        if run.metrics:
            x = [row["epoch"] for row in run.metrics]
            y = [100 * row["accuracy"] for row in run.metrics]
            style = _style(i) | {"markevery": max(len(x) // 8, 1)}
            axes.plot(x, y, label=run.name, **style)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy on training batches (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def to_base64(figure: "Figure") -> str:
    """A figure as the text of a PNG, for a data URL."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return base64.b64encode(buffer.getvalue()).decode()
