"""The figures of a report, as Matplotlib figures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jnode.report.pictures import Pictures
from jnode.report.results import RunReport
from jnode.report.style import (
    COLOURS,
    INK,
    colour,
    legend,
    new_figure,
    plain,
    share_axis,
    style,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def certificate(summary: dict[str, Any]) -> "Figure":
    """Certified robust accuracy and accuracy under attack against the L2 radius.
    **Arguments:** the content of `certificate.json`.
    """
    figure = new_figure(7.5, 4.4)
    axes = figure.add_subplot()
    curve, attacked = summary["curve"], summary["attacked"]
    x = np.asarray(curve["radius"])
    proven, local = (
        100 * np.asarray(curve[name])
        for name in ("certified_accuracy", "certified_locally")
    )
    points = [(0.0, attacked["clean_accuracy"])]
    points += [(row["radius"], row["robust_accuracy"]) for row in attacked["rows"]]
    u, v = np.asarray(points).T
    axes.plot(
        u,
        100 * v,
        "--o",
        color=colour(1),
        linewidth=2,
        label=f"robust after {attacked['attack']} (upper bound)",
    )
    gap = x <= u[-1]
    upper = np.interp(x[gap], u, 100 * v)
    axes.fill_between(x[gap], local[gap], upper, color=colour(1), alpha=0.12, lw=0)
    if np.any(local > proven):
        axes.plot(x, local, color=colour(5), linewidth=2, label="certified locally")
    axes.plot(
        x, proven, color=colour(0), linewidth=2.5, label="certified (lower bound)"
    )
    tidy(axes)
    share_axis(axes, f"accuracy on {attacked['num_examples']} test images (%)")
    # Past where nothing is proven or attacked there is nothing to see.
    seen = float(x[local > 1].max(initial=0))
    axes.set_xlim(0, 1.03 * max(seen, float(u[-1]), 1e-3))
    axes.set_xlabel("$L_2$ radius (pixels in [0, 1])")
    axes.legend(frameon=False, fontsize=9)
    return figure


def certified(runs: Sequence[RunReport]) -> "Figure":
    """Certified robust accuracy and accuracy under attack of runs against the L2
    radius.

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


AXES = {
    "linf": ("Adversarial, $L_\\infty$", "budget ε in $L_\\infty$ (pixels in [0, 1])"),
    "l2": ("Adversarial, $L_2$", "budget ε in $L_2$ (pixels in [0, 1])"),
    "l1": ("Adversarial, $L_1$", "budget ε in $L_1$ (pixels in [0, 1])"),
    "sigma": ("Gaussian noise", "standard deviation σ (pixels in [0, 1])"),
}


def robustness(runs: Sequence[RunReport]) -> "Figure":
    """Worst-case accuracy against epsilon: a panel for each norm, a curve for each run.

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


RIGHT, WRONG = COLOURS[2], COLOURS[1]


def images(pictures: Pictures, *, count: int = 8) -> "Figure":
    """Images, adversarial examples, and their magnified difference, with predictions.

    A tick or a cross beside each prediction shows whether it is right, so that this
    does not depend on colour.
    """
    count = min(count, len(pictures.clean))
    figure = new_figure(1.2 * count + 0.9, 4.25)
    rows = figure.subplots(3, count, squeeze=False)
    difference = pictures.adversarial[:count] - pictures.clean[:count]
    largest = max(float(np.abs(difference).max(initial=0)), 1e-9)
    stacks = (pictures.clean, pictures.adversarial, 0.5 + difference / (2 * largest))
    guesses = (pictures.clean_predictions, pictures.adversarial_predictions)
    for r, stack in enumerate(stacks):
        for c in range(count):
            axes = rows[r][c]
            _show(axes, stack[c])
            if r < 2:
                guess = int(guesses[r][c])
                right = guess == int(pictures.labels[c])
                _say(axes, f"{'✓' if right else '✗'} {_name(pictures, guess)}", right)
    magnified = f"change × {0.5 / largest:.2g}\n(grey = none)"
    for r, label in enumerate(("clean", "attacked", magnified)):
        rows[r][0].set_ylabel(label, fontsize=10, color=INK)
    return figure


def _name(pictures: Pictures, guess: int) -> str:
    name = "NaN" if guess < 0 else pictures.class_name(guess)
    return plain(name if len(name) <= 11 else name[:10] + "…")


def _show(axes, image) -> None:
    image = np.clip(image, 0, 1)
    if image.shape[-1] == 1:
        axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(image, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _say(axes, text: str, right: bool) -> None:
    colour = RIGHT if right else WRONG
    weight = "normal" if right else "bold"
    axes.set_title(text, fontsize=10, color=colour, fontweight=weight, pad=3)
