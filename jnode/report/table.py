"""The results of several runs, as a Markdown table."""

from collections.abc import Sequence

from jnode.report.run_report import RunReport


def attack_label(row: dict) -> str:
    """`pgd-40 Linf 0.1`, `gaussian 0.2`."""
    steps = f"-{row['steps']}" if row["steps"] > 1 else ""
    norm = {"linf": "Linf ", "l2": "L2 ", "sigma": "σ "}[row["norm"]]
    return f"{row['name']}{steps} {norm}{row['epsilon']:.3g}"


def cells(runs: Sequence[RunReport]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: a column per attack and per certified radius."""
    attacks = list(
        dict.fromkeys(attack_label(r) for run in runs for r in run.evaluation["attacks"])
    )
    radii = sorted(_radii(runs))
    header = ["model", "solver", "NFE", "clean", *attacks]
    header += [f"certified L2 {r:g}" for r in radii]
    header += ["training s"]
    rows = []
    for run in runs:
        e = run.evaluation
        found = {attack_label(r): r["robust_accuracy"] for r in e["attacks"]}
        sure = {r["radius"]: r["certified_accuracy"] for r in e["certified_accuracy"]}
        rows.append(
            [
                run.name,
                e["solver"],
                f"{e['nfe']:.0f}",
                percent(e["clean_accuracy"]),
                *(percent(found.get(a)) for a in attacks),
                *(percent(sure.get(r)) for r in radii),
                f"{run.seconds:.0f}",
            ]
        )
    return header, rows


def _radii(runs: Sequence[RunReport]) -> set[float]:
    """The certified radii worth a line: those that were attacked too, or all."""
    rows = [r for run in runs for r in run.evaluation["certified_accuracy"]]
    certified = {r["radius"] for r in rows if r["radius"] > 0}
    attacked = {
        r["epsilon"]
        for run in runs
        for r in run.evaluation["attacks"]
        if r["norm"] == "l2"
    }
    return certified & attacked or certified


def percent(value: float | None) -> str:
    """`97.1`, or a dash where there is nothing."""
    return "–" if value is None else f"{100 * value:.1f}"


def table(runs: Sequence[RunReport]) -> str:
    """Clean, attacked and certified accuracy in percent, one row a measure.

    Attacked accuracy is an empirical upper bound on robust accuracy, certified accuracy
    a proven lower bound. Models stand in columns, so that it fits a terminal.
    """
    header, rows = cells(runs)
    columns = [header, *rows]
    widths = [max(len(cell) for cell in column) for column in columns]
    lines = []
    for i in range(len(header)):
        line = [c[i].ljust(w) for c, w in zip(columns, widths, strict=True)]
        lines.append("| " + " | ".join(line) + " |")
        if i == 0:
            lines.append("| " + " | ".join("-" * w for w in widths) + " |")
    return "\n".join(lines)
