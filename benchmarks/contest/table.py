"""The contest's results as a Markdown table."""

from typing import Any

from jnode.evaluation import interval
from jnode.report.results import NORMS
from jnode.study.tables import amount

HEAD = (
    "model",
    "parameters",
    "ms",
    "clean %",
    "budget",
    "published %",
    "left by AutoAttack, % [95 % interval]",
    "images",
    "certified %",
    "flags",
)
NONE = "–"


def table(results: dict[str, dict[str, Any]]) -> str:
    """A line for each model and budget, in the order of the list of contestants.

    **Arguments:** what `benchmarks/results/contest.json` holds.
    """
    lines = [f"| {' | '.join(HEAD)} |"]
    lines.append("| --- | ---: | ---: | --- | --- | --- | --- | ---: | ---: | --- |")
    for name, entry in results.items():
        facts = [f"{entry['paper']}: {name}", f"{entry['parameters']:,}"]
        facts += [f"{entry['ms_per_image']:.2g}", clean(entry)]
        for cells in budgets(entry):
            lines.append(f"| {' | '.join([*facts, *cells])} |")
            facts = [""] * 4
    return "\n".join(lines) + "\n"


def budgets(entry: dict[str, Any]) -> list[list[str]]:
    """The cells of each budget that was attacked, published or certified."""
    rows = {budget_of(row): row for row in entry["rows"].values()}
    stated = [p for p in entry["published"] if p["budget"]]
    proven = {
        ("l2", round(r["radius"], 7)): r["certified_accuracy"]
        for r in entry.get("certified_accuracy", ())
    }
    known = {
        *rows,
        *proven,
        *((n, round(e, 7)) for n, e in (p["budget"] for p in stated)),
    }
    found = []
    for budget in sorted(known):
        row, share = rows.get(budget), proven.get(budget)
        found.append(
            [
                f"{NORMS[budget[0]]} {amount(budget[1])}",
                published(stated, budget),
                at_most(rows, budget) if row is None else left(row),
                NONE if row is None else f"{row['num_examples']:,}",
                NONE if share is None else percent(share),
                NONE if row is None else flags(row),
            ]
        )
    return found or [[NONE] * 6]


def percent(x: float) -> str:
    """A share in %, to one decimal."""
    return f"{100 * x:.1f}"


def clean(entry: dict[str, Any]) -> str:
    """Clean accuracy: as published, and of the rebuilt model on the same images."""
    whole = f"{percent(entry['clean_accuracy'])} of {entry['num_clean']:,}"
    if not entry["published"]:
        return whole
    stated = percent(entry["published"][0]["accuracy"])
    return f"{stated} published, {percent(entry['clean_as_published'])} here; {whole}"


def budget_of(row: dict[str, Any]) -> tuple[str, float]:
    """The norm and epsilon of a row."""
    (worst,) = row["worst_case"]
    return worst["norm"], round(worst["epsilon"], 7)


def published(stated: list[dict[str, Any]], budget: tuple[str, float]) -> str:
    """What the authors state for this budget."""
    found = [
        f"{percent(p['accuracy'])} ({p['attack']})"
        for p in stated
        if (p["budget"][0], round(p["budget"][1], 7)) == budget
    ]
    return ", ".join(found) or NONE


def left(row: dict[str, Any]) -> str:
    """Robust accuracy with its interval; the attack's name if it is a weaker one."""
    n, (worst,) = row["num_examples"], row["worst_case"]
    low, high = interval(round(worst["robust_accuracy"] * n), n)
    share = percent(worst["robust_accuracy"])
    weaker = "" if row["attack"].startswith("AutoAttack") else f" ({row['attack']})"
    return f"{share} [{percent(low)}, {percent(high)}]{weaker}"


def at_most(rows: dict[tuple, dict], budget: tuple[str, float]) -> str:
    """What a smaller budget of the same norm left: more than this one would."""
    less = [b for b in rows if b[0] == budget[0] and b[1] < budget[1]]
    if not less:
        return NONE
    (worst,) = rows[max(less)]["worst_case"]
    share = percent(worst["robust_accuracy"])
    return f"at most {share}, as at {amount(worst['epsilon'])}"


def flags(row: dict[str, Any]) -> str:
    """The flags' names."""
    return ", ".join(dict.fromkeys(f.split(":")[0] for f in row["flags"])) or "none"
