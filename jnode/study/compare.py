"""Which rows are better: by time and robust accuracy, and by paired tests."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from jnode.report.results import NONE, NORMS, attack_label
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
from jnode.study.measure import unpacked
from jnode.study.tables import (
    Row,
    Table,
    amount,
    budgets,
    grouped,
    judges,
    worst,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def pareto(rows: Sequence[Row], budget: tuple[str, float] | None = None) -> list[Row]:
    """The rows that no other beats in both time and robust accuracy, fastest first.

    Where AutoAttack ran on any of the rows, those on which it did not are left out.

    **Arguments:** rows of `run_study`; the norm and epsilon, by default the first
    budget of AutoAttack or, without AutoAttack, of any attack.

    **Raises:** `ValueError` if no row was attacked.
    """
    limit, judge = _budget(rows, budget), judges(rows)
    stood = [
        (row["ms_per_image"], -value, i)
        for i, row in enumerate(rows)
        if row["error"] is None and (value := worst(row, *limit, judge)) is not None
    ]
    found, best = [], -1.0
    for _, negative, i in sorted(stood):
        if -negative > best:
            found.append(rows[i])
            best = -negative
    return found


def paired(
    first: Row, second: Row, budget: tuple[str, float] | None = None
) -> dict[str, float | int]:
    r"""The difference of two accuracies on the same images, and whether it may be
    chance.

    Only the images count on which the two disagree: if neither model is better, each
    is as likely to be the one that is right. The p-value is that of McNemar's exact
    two-sided test. Of two accuracies measured on the same images the intervals may
    overlap although the difference is certain.

    **Arguments:** two rows of `run_study`; the norm and epsilon of attacks, by default
    none: clean accuracy.

    **Returns:** `difference` (the first accuracy minus the second, a share);
    `only_first` and `only_second`, the numbers of images that only one of them gets
    right; `p_value`; and `num_examples`.

    **Raises:** `ValueError` for rows of other images, or that were not attacked so, or
    by other attacks (those transferred do not count), or that hold no outcomes of
    images: failed ones, and those of older versions.
    """
    from scipy.stats import binomtest

    for row in (first, second):
        if "right" not in row:
            raise ValueError(
                f"first and second must hold what was right, and {row['cell']} does "
                "not: it failed, or is of an older version."
            )
    a, b = (_right(row, budget) for row in (first, second))
    if first["data"] != second["data"] or len(a) != len(b):
        raise ValueError(
            "first and second must be of the same images: they are of "
            f"{first['dataset']} ({len(a)}) and {second['dataset']} ({len(b)})."
        )
    if budget is not None and _attacks(first, budget) != _attacks(second, budget):
        known = (", ".join(_attacks(row, budget)) for row in (first, second))
        raise ValueError(
            "first and second must be of the same attacks: they are of "
            f"{' and of '.join(known)}."
        )
    only = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    return {
        "difference": (only[0] - only[1]) / len(a),
        "only_first": only[0],
        "only_second": only[1],
        "p_value": float(binomtest(only[0], sum(only)).pvalue) if any(only) else 1.0,
        "num_examples": len(a),
    }


SURE = 0.01
"""The p-value below which an order of two rows is not put down to chance."""


def orders(rows: Sequence[Row]) -> list[Table]:
    """A table of who is better on the same images, by paired tests of neighbours.

    In each line the rows are in order of their accuracy, clean or in a budget of
    AutoAttack; > stands where p < 0.01, and ≈ where the order may be chance. Models of
    one training are compared, and trainings of one model, each by its first seed. Rows
    of older versions, which do not say what was right, are left out.
    """
    known = [row for row in rows if "right" in row and row["part"] in ("models", "own")]
    lines = []
    for among, name in (("training", "model"), ("model", "training"), ("part", "cell")):
        part = "own" if among == "part" else "models"
        chosen = [row for row in known if row["part"] == part]
        for (_, value), group in grouped(chosen, "data", among).items():
            firsts = {row[name]: row for row in reversed(group)}
            if len(firsts) < 2:
                continue
            where = group[0]["dataset"]
            what = where if part == "own" else f"{where}, {value}"
            for budget in (None, *budgets(group)):
                lines.append([what, _label(budget), _chain(firsts, budget)])
    if not lines:
        return []
    note = (
        f"From the best to the worst on the same images: > for p < {SURE} between "
        "neighbours (McNemar's exact test), ≈ where the order may be chance. One seed."
    )
    return [Table("In order", note, ["among", "images", "order"], lines, 3)]


def solvers_compared(rows: Sequence[Row]) -> list[Table]:
    """A table of the solvers that are better or worse on the same images than the one
    from which attacks are transferred, or with which the model was trained."""
    lines = []
    for part in ("solvers", "steps"):
        known = [row for row in rows if row["part"] == part and "right" in row]
        for (_, model, trained), group in grouped(
            known, "data", "model", "trained_with"
        ).items():
            sources = {via for row in group for via in row.get("disagreement", ())}
            wanted = {trained} if part == "steps" else sources
            for reference in [row for row in group if row["solver"] in wanted]:
                for budget in (None, *budgets(group)):
                    better, worse = _beside(group, reference, budget)
                    name = f"{model}, {reference['solver']}"
                    lines.append([name, _label(budget), better, worse])
    if not lines:
        return []
    note = (
        "Beside the finest solver (from which attacks are transferred), or that of the "
        f"training, on the same images: differences of p < {SURE} (McNemar's exact "
        "test) in points."
    )
    head = ["model, beside", "images", "better", "worse"]
    return [Table("Solvers compared", note, head, lines, 4)]


def _beside(
    group: Sequence[Row], reference: Row, budget: tuple[str, float] | None
) -> tuple[str, str]:
    """The solvers of a group that are better for certain, and those that are worse."""
    better, worse = [], []
    for row in group:
        if budget is not None and _attacks(row, budget) != _attacks(reference, budget):
            continue
        found = paired(row, reference, budget)
        if found["p_value"] < SURE:
            points = 100 * found["difference"]
            (better if points > 0 else worse).append(f"{row['solver']} ({points:+.1f})")
    return ", ".join(better) or NONE, ", ".join(worse) or NONE


def _label(budget: tuple[str, float] | None) -> str:
    return "clean" if budget is None else f"{NORMS[budget[0]]} {amount(budget[1])}"


def _chain(named: dict[str, Row], budget: tuple[str, float] | None) -> str:
    """The names in order of accuracy, those that were measured."""
    tested = named
    if budget is not None:
        judge = judges(named.values())
        known = {n: r for n, r in named.items() if worst(r, *budget, judge) is not None}
        # By the same attacks as the first.
        attacks = {name: _attacks(row, budget) for name, row in known.items()}
        same = next(iter(attacks.values()), None)
        tested = {name: row for name, row in known.items() if attacks[name] == same}
    share = {name: np.mean(_right(row, budget)) for name, row in tested.items()}
    names = sorted(tested, key=lambda name: -share[name])
    text = names[0] if names else ""
    for better, other in itertools.pairwise(names):
        p = paired(tested[better], tested[other], budget)["p_value"]
        text += f" {'>' if p < SURE else '≈'} {other}"
    return text


def _attacks(row: Row, budget: tuple[str, float]) -> list[str]:
    """The attacks that decided over a row in a budget, without those transferred."""
    norm, epsilon = budget[0], round(budget[1], 7)
    judge = judges([row])
    if worst(row, norm, epsilon, judge) is None:
        judge = "alone"  # of this budget there is no AutoAttack
    return sorted(
        attack_label(entry)
        for entry in row.get(judge, {}).get("attacks", ())
        if entry["norm"] == norm and entry["epsilon"] <= epsilon and not entry["via"]
    )


def _right(row: Row, budget: tuple[str, float] | None) -> Bool[np.ndarray, " n"]:
    """The images that are classified correctly, in a budget if one is given."""
    if budget is None:
        return unpacked(row["right"], row["num_test"])
    wanted = (budget[0], round(budget[1], 7))
    for entry in row["robust"]:
        if (entry["norm"], entry["epsilon"]) == wanted:
            return unpacked(entry["right"], entry["num_examples"])
    raise ValueError(f"budget must be one at which {row['cell']} was attacked.")


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
    (norm, epsilon), judge = _budget(rows, budget), judges(rows)
    figure = new_figure(7.5, 4.4)
    axes = figure.subplots()
    handles: dict[str, Any] = {}
    done = [row for row in rows if row["error"] is None]
    for i, row in enumerate(done):
        style: dict[str, Any] = {"color": COLOURS[i % 7], "linestyle": "none"}
        style |= {"marker": MARKERS[(i + i // 7) % 7], "markersize": 7}
        x, value = row["ms_per_image"], worst(row, norm, epsilon, judge)
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
    best, judge = pareto(rows, (norm, epsilon)), judges(rows)
    x = [row["ms_per_image"] for row in best]
    y = [100 * (worst(row, norm, epsilon, judge) or 0) for row in best]
    x.append(max(row["ms_per_image"] for row in rows))
    axes.step(x, [*y, y[-1]], where="post", color=INK, linewidth=1, zorder=1)


def logarithmic(axes: "Axes") -> None:
    """A logarithmic x axis with plain numbers."""
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
