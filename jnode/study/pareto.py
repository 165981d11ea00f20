"""Time against worst-case robust accuracy: the front, and its figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jnode.report.results import NORMS
from jnode.report.style import (
    COLOURS,
    INK,
    MARKERS,
    legend,
    new_figure,
    plain,
    plain_ticks,
    share_axis,
    tidy,
)
from jnode.study.tables import Row, amount, budgets, worst

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def pareto(rows: Sequence[Row], budget: tuple[str, float] | None = None) -> list[Row]:
    """The rows that no other beats in both time and robust accuracy, fastest first.

    **Arguments:** rows of `run_study`; the norm and epsilon, by default the first
    budget of AutoAttack or, without AutoAttack, of any attack.

    **Raises:** `ValueError` if no row was attacked.
    """
    norm, epsilon = _budget(rows, budget)
    stood = [
        (row["ms_per_image"], -value, i)
        for i, row in enumerate(rows)
        if row["error"] is None and (value := worst(row, norm, epsilon)) is not None
    ]
    found, best = [], -1.0
    for _, negative, i in sorted(stood):
        if -negative > best:
            found.append(rows[i])
            best = -negative
    return found


def _budget(rows: Sequence[Row], budget: Any) -> tuple[str, float]:
    known = budgets(rows)
    if not known:
        raise ValueError("rows must hold one that was attacked, and none was.")
    return known[0] if budget is None else (budget[0], round(budget[1], 7))


def pareto_figure(
    rows: Sequence[Row], budget: tuple[str, float] | None = None
) -> "Figure":
    """Milliseconds per image against accuracy, clean (hollow) and robust with its 95 %
    interval, and the front as a line; arguments as for `pareto`.

    **Raises:** as `pareto`; `ImportError` without Matplotlib.
    """
    norm, epsilon = _budget(rows, budget)
    figure = new_figure(7.5, 4.4)
    axes = figure.subplots()
    handles: dict[str, Any] = {}
    done = [row for row in rows if row["error"] is None]
    for i, row in enumerate(done):
        style: dict[str, Any] = {"color": COLOURS[i % 7], "linestyle": "none"}
        style |= {"marker": MARKERS[(i + i // 7) % 7], "markersize": 7}
        x, value = row["ms_per_image"], worst(row, norm, epsilon)
        axes.plot(x, 100 * row["clean_accuracy"], **style, markerfacecolor="white")
        if value is None:
            continue
        low, high = _interval(row, norm, epsilon) or (value, value)
        axes.vlines(x, 100 * low, 100 * high, color=style["color"], linewidth=1.5)
        handles[plain(row["cell"])] = axes.plot(x, 100 * value, **style, zorder=3)[0]
    front(axes, done, norm, epsilon)
    tidy(axes)
    logarithmic(axes)
    share_axis(axes, f"accuracy (%): clean, robust at {NORMS[norm]} {amount(epsilon)}")
    axes.set_xlabel("milliseconds per image")
    legend(figure, handles)
    return figure


def _interval(row: Row, norm: str, epsilon: float) -> tuple[float, float] | None:
    for entry in row.get("robust", ()):
        if (entry["norm"], entry["epsilon"]) == (norm, epsilon):
            return tuple(entry["interval"])
    return None


def front(axes: "Axes", rows: Sequence[Row], norm: str, epsilon: float) -> None:
    """Draws the front as a line of steps."""
    best = pareto(rows, (norm, epsilon))
    x = [row["ms_per_image"] for row in best]
    y = [100 * (worst(row, norm, epsilon) or 0) for row in best]
    x.append(max(row["ms_per_image"] for row in rows))
    axes.step(x, [*y, y[-1]], where="post", color=INK, linewidth=1, zorder=1)


def logarithmic(axes: "Axes") -> None:
    """A logarithmic x axis with plain numbers."""
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
