"""The contest's results as a Markdown table."""

from typing import Any

from jnode.evaluation import interval

HEAD = (
    "model",
    "parameters",
    "ms",
    "clean %",
    "budget",
    "published %",
    "AutoAttack leaves %",
    "certified %",
    "flags",
)


def table(results: dict[str, dict[str, Any]]) -> str:
    """A row for each model and budget, in the order of the papers.

    **Arguments:** what `benchmarks/results/contest.json` holds.
    """
    lines = [f"| {' | '.join(HEAD)} |", "| --- | ---: | ---: | --- |" + " --- |" * 5]
    for name, entry in results.items():
        first = True
        for budget, row in entry["rows"].items():
            facts = [name, f"{entry['parameters']:,}", f"{entry['ms_per_image']:.2g}"]
            facts.append(clean(entry))
            cells = facts if first else [""] * 4
            first = False
            cells += [
                budget.replace(":", " "),
                published(entry, row),
                f"{left(row)}, {row['num_examples']} images",
                certified(entry, row),
                "; ".join(dict.fromkeys(f.split(":")[0] for f in row["flags"]))
                or "none",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def percent(x: float) -> str:
    return f"{100 * x:.1f}"


def clean(entry: dict[str, Any]) -> str:
    """The published clean accuracy, and the rebuilt model's on the same images."""
    ours = percent(entry["clean_accuracy"])
    if not entry["published"]:
        return ours
    stated = entry["published"][0]["accuracy"]
    again = entry["clean_as_published"]
    return f"{percent(stated)} published, {percent(again)} rebuilt; {ours} of all"


def budget_of(row: dict[str, Any]) -> tuple[str, float]:
    (worst,) = row["worst_case"]
    return worst["norm"], worst["epsilon"]


def published(entry: dict[str, Any], row: dict[str, Any]) -> str:
    """What the authors state for this budget."""
    norm, epsilon = budget_of(row)
    found = [
        f"{percent(p['accuracy'])} ({p['attack']})"
        for p in entry["published"]
        if p["budget"] and p["budget"][0] == norm
        if abs(p["budget"][1] - epsilon) < 1e-6
    ]
    return ", ".join(found) or "–"


def left(row: dict[str, Any]) -> str:
    """Robust accuracy with its 95 % interval."""
    n, (worst,) = row["num_examples"], row["worst_case"]
    low, high = interval(round(worst["robust_accuracy"] * n), n)
    share = percent(worst["robust_accuracy"])
    return f"{share} [{percent(low)}, {percent(high)}]"


def certified(entry: dict[str, Any], row: dict[str, Any]) -> str:
    """Certified accuracy at this budget, in L2."""
    norm, epsilon = budget_of(row)
    if "radii" not in entry:
        return "–"
    if norm != "l2":
        return "–"
    return percent(sum(r >= epsilon for r in entry["radii"]) / len(entry["radii"]))
