"""The report of a study: figures with one statement for each panel, and a page."""

import os
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jnode._files import write_atomic
from jnode.report.page import document, figure_html
from jnode.report.results import NORMS
from jnode.report.style import (
    COLOURS,
    MARKERS,
    legend,
    new_figure,
    plain,
    share_axis,
    tidy,
    to_png,
)
from jnode.study.compare import (
    front,
    logarithmic,
    orders,
    pareto_figure,
    solvers_compared,
)
from jnode.study.tables import (
    Row,
    amount,
    budgets,
    certified,
    constant_label,
    grouped,
    judges,
    radii,
    tables,
    worst,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLEAN, PROVEN = COLOURS[6], COLOURS[2]


def figures(rows: Sequence[Row]) -> dict[str, "Figure"]:
    """A figure for each data set and part that the rows are of, by file name.

    **Raises:** `ImportError` without Matplotlib.
    """
    done = [row for row in rows if row["error"] is None]
    found = {}
    for part, draw in _DRAWERS.items():
        for dataset in dict.fromkeys(row["dataset"] for row in done):
            chosen = [r for r in done if r["part"] == part and r["dataset"] == dataset]
            if chosen:
                found[f"{part}-{dataset}"] = draw(chosen)
    return found


CAPTIONS = {
    "models": "One panel for each training. Circles: clean accuracy. Filled markers: "
    "accuracy under attack, an empirical upper bound on robust accuracy, measured "
    "on fewer images than clean and certified accuracy, so it may lie above them. "
    "Triangles: certified accuracy, a lower bound. Thin lines: the range over seeds.",
    "lipschitz": "Left: accuracy of the Ortho field against its constant, and of the "
    "same field without a constraint. Middle: the Lipschitz constant from pixels to "
    "features: a certified upper bound, and a lower bound found by a search. Right: "
    "evaluations of the field by an adaptive solver with the same weights.",
    "solvers": "The same weights with every solver. Hollow and dashed: clean accuracy. "
    "Filled: robust under all attacks, including those transferred from the finest "
    "solver. Small and dotted: certified. Right: the black line joins the solvers that "
    "no other one beats in both time and accuracy.",
    "steps": "Trained with one number of Euler steps, evaluated with others. Hollow, "
    "dashed: clean accuracy. Filled: robust under all attacks.",
    "own": "Hollow: clean accuracy. Filled: robust under all attacks, with the 95 % "
    "interval. The line joins the cells that no other one beats in both time and "
    "accuracy.",
}


def _models(rows: list[Row]) -> "Figure":
    trainings = list(dict.fromkeys(row["training"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    limits, balls, judge = budgets(rows), radii(rows), judges(rows)
    height = 1.5 + 0.33 * len(models)
    figure = new_figure(1.2 + 2.6 * len(trainings), height)
    panels = figure.subplots(1, len(trainings), sharey=True, squeeze=False)[0]
    handles: dict[str, Any] = {}
    measures: list[tuple[str, Callable, str, str, str]] = [
        ("clean", lambda r: r["clean_accuracy"], "o", CLEAN, "white")
    ]
    for i, (norm, epsilon) in enumerate(limits):
        colour = (COLOURS[0], COLOURS[1], COLOURS[4], COLOURS[3])[i % 4]
        label = f"robust, {NORMS[norm]} {amount(epsilon)}"
        measures.append(
            (label, _worst(norm, epsilon, judge), "sDPX"[i % 4], colour, colour)
        )
    if balls:
        label = f"certified, L2 {amount(balls[0])}"
        ball = lambda r: certified(r, balls[0])  # noqa: E731
        measures.append((label, ball, "^", PROVEN, PROVEN))
    for axes, training in zip(panels, trainings, strict=True):
        groups = grouped((r for r in rows if r["training"] == training), "model")
        for label, get, marker, edge, face in measures:
            for (model,), group in groups.items():
                values = [100 * v for v in map(get, group) if v is not None]
                if not values:
                    continue
                y = models.index(model)
                axes.plot([min(values), max(values)], [y, y], color=edge, linewidth=1.2)
                style = {"markeredgecolor": edge, "color": face, "markersize": 6}
                dots = axes.plot(
                    [sum(values) / len(values)],
                    [y],
                    marker=marker,
                    linestyle="none",
                    clip_on=False,
                    zorder=3,
                    **style,
                )
                handles.setdefault(label, dots[0])
        tidy(axes)
        axes.set_title(training, fontsize=10, loc="left")
        axes.set_xlim(-2, 102)
        axes.set_xticks(range(0, 101, 25))
        axes.set_xlabel("accuracy (%)")
        axes.set_yticks(range(len(models)), [plain(name) for name in models])
        axes.set_ylim(len(models) - 0.5, -0.5)
    legend(figure, handles)
    return figure


def _worst(norm: str, epsilon: float, judge: str):
    return lambda row: worst(row, norm, epsilon, judge)


def _lipschitz(rows: list[Row]) -> "Figure":
    groups = grouped(rows, "model")
    labels = [constant_label(model) for (model,) in groups]
    places = np.arange(len(labels))
    figure = new_figure(11.5, 3.9)
    left, middle, right = figure.subplots(1, 3)
    (norm, epsilon), balls = budgets(rows)[0], radii(rows)
    curves = {
        "clean": (lambda r: r["clean_accuracy"], CLEAN, "o"),
        f"robust, {NORMS[norm]} {amount(epsilon)}": (
            _worst(norm, epsilon, judges(rows)),
            COLOURS[0],
            "s",
        ),
        f"certified, L2 {amount(balls[len(balls) // 2])}": (
            lambda r: certified(r, balls[len(balls) // 2]),
            PROVEN,
            "^",
        ),
    }
    handles = {}
    for label, (get, colour, marker) in curves.items():
        handles[label] = _curve(left, places, groups, get, colour, marker, 100)
    for label, name, colour, marker in (
        ("Lipschitz constant, certified", "certified_upper_bound", COLOURS[1], "v"),
        ("Lipschitz constant, found", "empirical_lower_bound", COLOURS[4], "D"),
    ):
        get = lambda r, name=name: r["tightness"][name]  # noqa: E731
        handles[label] = _curve(middle, places, groups, get, colour, marker)
    nfe = _curve(right, places, groups, lambda r: r["adaptive"]["nfe"], COLOURS[3], "P")
    handles[f"NFE, {rows[0]['adaptive']['solver']}"] = nfe
    for axes in (left, middle, right):
        tidy(axes)
        axes.set_xticks(places, labels)
        axes.set_xlabel("Lipschitz constant L of the field")
    share_axis(left, "accuracy (%)")
    middle.set_yscale("log", base=2)
    middle.set_ylabel("Lipschitz constant, pixels to features")
    right.set_ylabel("evaluations of the field in a solve")
    right.set_ylim(bottom=0)
    legend(figure, handles)
    return figure


def _curve(axes: "Axes", places, groups, get, colour, marker, scale=1.0):
    """Means, joined by a line for numeric constants, and the range over seeds."""
    found = {
        places[i]: [scale * v for v in map(get, group) if v is not None]
        for i, group in enumerate(groups.values())
    }
    found = {x: values for x, values in found.items() if values}
    bounded = [
        x
        for x, (model,) in zip(places, groups, strict=True)
        if x in found and constant_label(model) != "none"
    ]
    means = {x: sum(values) / len(values) for x, values in found.items()}
    lows, highs = zip(*((min(v), max(v)) for v in found.values()), strict=True)
    axes.vlines([*found], lows, highs, color=colour, alpha=0.25, linewidth=5)
    axes.plot(bounded, [means[x] for x in bounded], color=colour, linewidth=2)
    style = {"markeredgecolor": "white", "markersize": 6, "linestyle": "none"}
    return axes.plot(
        [*means], [*means.values()], color=colour, marker=marker, clip_on=False, **style
    )[0]


def _solvers(rows: list[Row]) -> "Figure":
    models = list(dict.fromkeys(row["model"] for row in rows))
    (norm, epsilon), balls, judge = budgets(rows)[0], radii(rows), judges(rows)
    figure = new_figure(9.5, 0.6 + 3.4 * len(models))
    panels = figure.subplots(len(models), 2, sharex="col", sharey=True, squeeze=False)
    methods = [method for (method,) in grouped(rows, "solver_name")]
    handles: dict[str, Any] = {}
    for (left, right), model in zip(panels, models, strict=True):
        chosen = [row for row in rows if row["model"] == model]
        for (method,), group in grouped(chosen, "solver_name").items():
            i = methods.index(method)
            style: dict[str, Any] = {"color": COLOURS[i % 7], "markersize": 6}
            style["marker"] = MARKERS[i % 7]
            hollow = {"linestyle": "--", "linewidth": 1, "markerfacecolor": "white"}
            group = sorted(group, key=lambda r: r["nfe"])
            clean = [100 * r["clean_accuracy"] for r in group]
            robust = [100 * (worst(r, norm, epsilon, judge) or 0) for r in group]
            nfe = [r["nfe"] for r in group]
            left.plot(nfe, clean, **style, **hollow)
            drawn = left.plot(nfe, robust, linewidth=1.8, **style)
            handles[method] = drawn[0]
            proven = [certified(r, balls[0]) if balls else None for r in group]
            if None not in proven:
                proven = [100 * value for value in proven]
                left.plot(nfe, proven, linestyle=":", **style | {"markersize": 3})
            right.plot(
                [r["ms_per_image"] for r in group], robust, linestyle="none", **style
            )
        front(right, chosen, norm, epsilon)
        for axes in (left, right):
            tidy(axes)
            logarithmic(axes)
            share_axis(axes, f"{plain(model)}: accuracy (%)" if axes is left else "")
    panels[-1][0].set_xlabel("evaluations of the field in a solve (NFE)")
    panels[-1][1].set_xlabel("milliseconds per image")
    budget = f"{NORMS[norm]} {amount(epsilon)}"
    shown = f"clean, robust at {budget}"
    shown += f", certified at L2 {amount(balls[0])}" if balls else ""
    panels[0][0].set_title(shown, fontsize=10, loc="left")
    panels[0][1].set_title(f"robust at {budget}", fontsize=10, loc="left")
    legend(figure, handles)
    return figure


def _steps(rows: list[Row]) -> "Figure":
    (norm, epsilon), judge = budgets(rows)[0], judges(rows)
    figure = new_figure(6.2, 3.9)
    axes = figure.subplots()
    handles: dict[str, Any] = {}
    for i, ((trained,), group) in enumerate(grouped(rows, "trained_with").items()):
        steps = [row["nfe"] for row in group]
        clean = [100 * row["clean_accuracy"] for row in group]
        robust = [100 * (worst(row, norm, epsilon, judge) or 0) for row in group]
        style = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 6}
        line = {"linestyle": "--", "linewidth": 1, "markerfacecolor": "white"}
        handles[f"trained with {trained}: clean"] = axes.plot(
            steps, clean, **style, **line
        )[0]
        label = f"trained with {trained}: robust, {NORMS[norm]} {amount(epsilon)}"
        handles[label] = axes.plot(steps, robust, linewidth=1.8, **style)[0]
    tidy(axes)
    share_axis(axes, "accuracy (%)")
    axes.set_xscale("log", base=2)
    ticks = sorted({row["nfe"] for row in rows})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel("Euler steps at test time")
    legend(figure, handles)
    return figure


_DRAWERS = {
    "models": _models,
    "lipschitz": _lipschitz,
    "solvers": _solvers,
    "steps": _steps,
    "own": pareto_figure,
}


def write_study(rows: Sequence[Row], folder: str | os.PathLike, name: str) -> Path:
    """Writes `name`.md, `name`.html and the figures, `name`-*.png.

    **Arguments:** rows from `run_study`; the folder; the name of the files.

    **Returns:** the path of the page.

    **Raises:** `ValueError` where there is no row, `ImportError` without Matplotlib.
    """
    if not rows:
        raise ValueError("rows must hold at least one finished cell, not none.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = [*tables(rows), *orders(rows), *solvers_compared(rows)]
    text = "\n\n".join(table.markdown() for table in found) + "\n"
    drawn = figures(rows)
    body = [f"<h1>Study: {escape(name)}</h1>", *(table.html() for table in found)]
    for key, figure in drawn.items():
        part, _, dataset = key.partition("-")
        body.append(f"<h2>{escape(part.capitalize())} on {escape(dataset)}</h2>")
        body.append(figure_html(figure, CAPTIONS[part]))
        png = to_png(figure)
        write_atomic(folder / f"{name}-{key}.png", lambda f, png=png: f.write(png))
    write_atomic(folder / f"{name}.md", lambda file: file.write(text.encode()))
    page = folder / f"{name}.html"
    html = document(f"study {name}", body)
    write_atomic(page, lambda f: f.write(html.encode(errors="replace")))
    return page
