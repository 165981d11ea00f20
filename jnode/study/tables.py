"""The rows of a study as tables."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from jnode.evaluation import interval
from jnode.report.results import NONE, NORMS, attack_label, percent

Row = dict[str, Any]
FALLING = 0.02
"""A loss that falls by a larger share in the last epoch marks its cell."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A title, a note, a head and rows; the first `labels` columns are text."""

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]
    labels: int

    def markdown(self) -> str:
        """The table with its title and note, for Markdown."""
        n = len(self.head) - self.labels
        rule = ["---"] * self.labels + ["---:"] * n
        lines = [f"| {' | '.join(row)} |" for row in (self.head, rule, *self.rows)]
        return "\n".join([f"**{self.title}.** {self.note}", "", *lines])

    def html(self) -> str:
        """The table with its title and note, for a page of the report."""
        head = "".join(f"<th scope='col'>{escape(text)}</th>" for text in self.head)
        rows = []
        for row in self.rows:
            words = "".join(
                f"<th scope='row'>{escape(text)}</th>" for text in row[: self.labels]
            )
            cells = "".join(f"<td>{escape(text)}</td>" for text in row[self.labels :])
            rows.append(f"<tr>{words}{cells}</tr>")
        return (
            f"<h2>{escape(self.title)}</h2><p class='dim'>{escape(self.note)}</p>"
            f"<div class='scroll'><table class='results'><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table></div>"
        )


def tables(rows: Sequence[Row]) -> list[Table]:
    """A table for each data set and part among the rows; failed cells come last."""
    done = [row for row in rows if row["error"] is None]
    found = []
    for part, make in _MAKERS.items():
        for dataset in dict.fromkeys(row["dataset"] for row in done):
            chosen = [r for r in done if r["part"] == part and r["dataset"] == dataset]
            if chosen:
                found.append(make(chosen))
    failed = [row for row in rows if row["error"] is not None]
    if failed:
        note = f"{len(failed)} of {len(rows)} cells."
        lines = [[row["cell"], _line(row["error"])] for row in failed]
        found.append(Table("Failed", note, ["cell", "error"], lines, 2))
    return found


def grouped(rows: Iterable[Row], *names: str) -> dict[tuple, list[Row]]:
    """The rows of each combination of these entries, in order of appearance."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def judges(rows: Iterable[Row]) -> str:
    """Whose attacks tell how robust these rows are: AutoAttack's ("ensemble") if it ran
    on any of them, else all others ("alone"). One row is not compared with another
    that was attacked less."""
    return "ensemble" if any("ensemble" in row for row in rows) else "alone"


def worst(row: Row, norm: str, epsilon: float, judge: str) -> float | None:
    """Robust accuracy in a budget under the attacks of `judges`; `None` if these did
    not run."""
    for entry in row.get(judge, {}).get("worst_case", ()):
        if (entry["norm"], entry["epsilon"]) == (norm, epsilon):
            return entry["robust_accuracy"]
    return None


def budgets(rows: Sequence[Row]) -> list[tuple[str, float]]:
    """The norms and epsilons of the attacks of `judges`; Linf first."""
    judge = judges(rows)
    found = {
        (entry["norm"], entry["epsilon"])
        for row in rows
        for entry in row.get(judge, {}).get("worst_case", ())
        if entry["norm"] != "sigma"
    }
    return sorted(found, key=lambda b: (b[0] != "linf", b))


def certified(row: Row, radius: float, norm: str = "l2") -> float | None:
    """Certified robust accuracy at a radius; `None` without a certificate."""
    for entry in row["certified_accuracy"]:
        if (entry["norm"], entry["radius"]) == (norm, radius):
            return entry["certified_accuracy"]
    return None


def radii(rows: Sequence[Row], norm: str = "l2") -> list[float]:
    """The radii at which any of the rows certifies in a norm."""
    entries = [e for row in rows for e in row["certified_accuracy"]]
    return sorted({e["radius"] for e in entries if e["norm"] == norm})


def _balls(rows: Sequence[Row]) -> list[tuple[float, str]]:
    """Radii and norms of certified accuracy."""
    return [(r, norm) for norm in ("l2", "linf") for r in radii(rows, norm)]


def _heads(balls: Sequence[tuple[float, str]]) -> list[str]:
    return [f"certified {NORMS[norm]} {amount(r)}" for r, norm in balls]


def amount(value: float) -> str:
    """`0.1`, or `8/255` for whole levels of a byte that are not round numbers."""
    levels = 255 * value
    whole = abs(levels - round(levels)) < 1e-3 and abs(50 * value % 1) > 1e-6
    return f"{round(levels)}/255" if whole else f"{value:g}"


def spread(values: Sequence[float | None], form: Callable[[float], str]) -> str:
    """The mean, and half the range if there are several values."""
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    mean = form(sum(known) / len(known))
    half = (max(known) - min(known)) / 2
    return mean if len(known) == 1 else f"{mean} ± {form(half)}"


def _numbers(values: Sequence[float | None]) -> str:
    """As `spread`: the mean to three digits, half the range to as many decimals."""
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    mean = sum(known) / len(known)
    if len(known) == 1 or mean == 0:
        return _short(mean)
    decimals = max(0, 2 - math.floor(math.log10(abs(mean))))
    half = f"{(max(known) - min(known)) / 2:.{decimals}f}"
    return f"{_short(mean)} ± {'0' if float(half) == 0 else half}"


def _models(rows: list[Row]) -> Table:
    tried = list(
        dict.fromkeys(
            _alone_label(entry)
            for row in rows
            for entry in row.get("alone", {}).get("attacks", ())
        )
    )
    # Single attacks have columns of their own.
    limits = budgets(rows) if judges(rows) == "ensemble" else []
    balls = _balls(rows)
    head = ["model", "training", "parameters", "NFE", "movement", "train s", "clean"]
    head += tried
    head += [f"AutoAttack {NORMS[n]} {amount(e)}" for n, e in limits]
    head += _heads(balls)
    lines = []
    for (model, training), group in grouped(rows, "model", "training").items():
        cells = [model, training, f"{group[0]['parameters']:,}"]
        cells.append(_short(group[0]["nfe"]))
        cells.append(_maybe(group[0].get("movement")))
        cells.append(_short(sum(r["training_seconds"] for r in group) / len(group)))
        cells.append(spread([r["clean_accuracy"] for r in group], percent))
        cells += [spread([_alone(r, name) for r in group], percent) for name in tried]
        for b in limits:
            cells += [spread([worst(r, *b, "ensemble") for r in group], percent)]
        cells += [spread([certified(r, *x) for r in group], percent) for x in balls]
        lines.append(cells)
    return Table(_title("Models", rows), _note(rows), head, lines, 2)


def _lipschitz(rows: list[Row]) -> Table:
    limits, balls, judge = budgets(rows), _balls(rows), judges(rows)
    head = ["L", "clean", *(f"robust {NORMS[n]} {amount(e)}" for n, e in limits)]
    head += _heads(balls)
    head += [
        "Lipschitz constant, certified",
        "Lipschitz constant, found",
        f"NFE {rows[0]['solver']}",
    ]
    head.append(f"NFE {rows[0]['adaptive']['solver']}")
    lines = []
    for (model,), group in grouped(rows, "model").items():
        cells = [constant_label(model)]
        cells.append(spread([r["clean_accuracy"] for r in group], percent))
        for b in limits:
            cells += [spread([worst(r, *b, judge) for r in group], percent)]
        cells += [spread([certified(r, *x) for r in group], percent) for x in balls]
        for name in ("certified_upper_bound", "empirical_lower_bound"):
            cells.append(_numbers([r["tightness"][name] for r in group]))
        cells.append(_short(group[0]["nfe"]))
        cells.append(_numbers([r["adaptive"]["nfe"] for r in group]))
        lines.append(cells)
    return Table(_title("Lipschitz constants", rows), _note(rows), head, lines, 1)


def constant_label(model: str) -> str:
    """`0.25`, or `none`, of a model called `ortho-L0.25`."""
    constant = model.rpartition("-L")[2]
    return "none" if constant == "inf" else constant


def _solvers(rows: list[Row]) -> Table:
    limits, balls, judge = budgets(rows), _balls(rows), judges(rows)
    head = ["model", "solver", "NFE", "movement", "ms / image", "clean", "disagree"]
    for norm, epsilon in limits:
        budget = f"{NORMS[norm]} {amount(epsilon)}"
        head += [f"own attacks {budget}", f"transferred {budget}", f"robust {budget}"]
    head += _heads(balls)
    lines = []
    for row in sorted(rows, key=lambda r: (r["model"], r["solver_name"], r["nfe"])):
        cells = [row["model"], row["solver"], _short(row["nfe"])]
        cells += [_maybe(row.get("movement"))]
        cells += [_short(row["ms_per_image"]), percent(row["clean_accuracy"])]
        cells += [_disagreement(row)]
        for budget in limits:
            cells += [
                percent(attacked(row, *budget, transferred=False)),
                percent(attacked(row, *budget, transferred=True)),
                percent(worst(row, *budget, judge)),
            ]
        cells += [percent(certified(row, *x)) for x in balls]
        lines.append(cells)
    sources = {
        entry["via"] for r in rows for entry in r["alone"]["attacks"] if entry["via"]
    }
    finest = ", ".join(sorted(sources))
    note = (
        f"{_note(rows)} Transferred: PGD through {finest}. Disagree: the images that "
    )
    note += f"{finest} puts in another class, in %."
    return Table(_title("Solvers", rows), note, head, lines, 2)


def _disagreement(row: Row) -> str:
    return percent(next(iter(row.get("disagreement", {}).values()), None))


def attacked(row: Row, norm: str, epsilon: float, *, transferred: bool) -> float | None:
    """The lowest accuracy under one attack, on the solver itself or transferred."""
    found = [
        entry["robust_accuracy"]
        for entry in row["alone"]["attacks"]
        if (entry["norm"], entry["epsilon"]) == (norm, epsilon)
        and bool(entry["via"]) == transferred
    ]
    return min(found, default=None)


def _steps(rows: list[Row]) -> Table:
    limits, judge = budgets(rows), judges(rows)
    head = ["trained with", "solved with", "movement", "clean"]
    head += [f"robust {NORMS[n]} {amount(e)}" for n, e in limits]
    lines = [
        [
            row["trained_with"],
            row["solver"],
            _maybe(row.get("movement")),
            percent(row["clean_accuracy"]),
            *(percent(worst(row, *budget, judge)) for budget in limits),
        ]
        for row in rows
    ]
    return Table(_title("Steps", rows), _note(rows), head, lines, 2)


def _own(rows: list[Row]) -> Table:
    head = ["cell", "solver", "NFE", "largest", "ms / image", "clean"]
    limits, balls, judge = budgets(rows), _balls(rows), judges(rows)
    head += [f"robust {NORMS[n]} {amount(e)}" for n, e in limits]
    head += _heads(balls)
    lines = []
    for row in rows:
        counts = [row["nfe"], row["nfe_largest"]]
        cells = [row["cell"], row["solver"]]
        cells += [NONE if n is None else _short(n) for n in counts]
        cells += [_short(row["ms_per_image"]), percent(row["clean_accuracy"])]
        found = {(e["norm"], e["epsilon"]): e for e in row["robust"]}
        for limit in limits:
            known = worst(row, *limit, judge) is not None
            cells.append(_with_interval(found[limit]) if known else NONE)
        cells += [percent(certified(row, *x)) for x in balls]
        lines.append(cells)
    flags = [f"{row['cell']}: {' '.join(row['flags'])}" for row in rows if row["flags"]]
    note = f"Accuracy in %, of {rows[0]['num_test']:,} test images; robust accuracy "
    note += f"of {_images(rows)}, with its 95 % interval. {' '.join(flags)}".rstrip()
    return Table(_title("Own cells", rows), note, head, lines, 2)


def _images(rows: list[Row]) -> str:
    counts = {entry["num_examples"] for row in rows for entry in row["robust"]}
    return " or ".join(f"{count:,}" for count in sorted(counts)) or "none"


def _with_interval(entry: Row) -> str:
    low, high = entry["interval"]
    share = percent(entry["robust_accuracy"])
    return f"{share} [{percent(low)}, {percent(high)}]"


_MAKERS: dict[str, Callable[[list[Row]], Table]] = {
    "models": _models,
    "lipschitz": _lipschitz,
    "solvers": _solvers,
    "steps": _steps,
    "own": _own,
}


def _alone_label(entry: Row) -> str:
    label = attack_label({**entry, "epsilon": 0.0}).removesuffix(" 0")
    return f"{label} {amount(entry['epsilon'])}"


def _alone(row: Row, label: str) -> float | None:
    for entry in row.get("alone", {}).get("attacks", ()):
        if _alone_label(entry) == label:
            return entry["robust_accuracy"]
    return None


def _title(what: str, rows: list[Row]) -> str:
    return f"{what} on {rows[0]['dataset']}"


_ATTACKED = {"alone": "single attacks", "ensemble": "AutoAttack"}


def _half(total: int) -> float:
    """Half of the longest 95 % interval of a share of so many."""
    low, high = interval(total // 2, total)
    return (high - low) / 2


def _note(rows: list[Row]) -> str:
    """A note on the numbers of images and epochs."""
    row = rows[0]
    parts = [
        f"Accuracy in %: clean and certified of {row['num_test']:,} test images; "
        f"trained on {row['num_train']:,} for {_all(rows, 'epochs')} epochs"
    ]
    for name, says in _ATTACKED.items():
        if name in row:
            parts.append(f"{says} on the first {row[name]['num_examples']:,}")
    note = "; ".join(parts) + "."
    counts = {row["num_test"], *(row[x]["num_examples"] for x in _ATTACKED if x in row)}
    widths = [f"{percent(_half(n))} of {n:,}" for n in sorted(counts, reverse=True)]
    note += f" The 95 % intervals are at most ± these points: {', '.join(widths)}."
    seeds = len({row["seed"] for row in rows})
    if seeds > 1:
        note += f" ± is half the range of up to {seeds} seeds."
    flagged = [
        row["cell"]
        for row in rows
        if any(row.get(name, {}).get("flags") for name in _ATTACKED)
    ]
    # The flags themselves are in the rows.
    note += f" Flags of masked gradients: {', '.join(flagged)}." if flagged else ""
    falling = [row["cell"] for row in rows if (row.get("loss_fall") or 0) > FALLING]
    if falling:
        names = "all" if len(falling) == len(rows) else ", ".join(falling)
        note += f" Trained too little, the loss fell by more than {FALLING:.0%} in the "
        note += f"last epoch: {names}."
    return note


def _all(rows: list[Row], name: str) -> str:
    return " or ".join(str(value) for value in sorted({row[name] for row in rows}))


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _maybe(value: float | None) -> str:
    return NONE if value is None else _short(value)


def _line(text: str) -> str:
    """The text as one line, escaped for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
