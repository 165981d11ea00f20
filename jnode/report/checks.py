"""What was checked of a run's evaluation, and what came out, in plain words."""

from collections.abc import Sequence
from html import escape
from typing import Any

from jnode.report.run_report import RunReport

CHECKS = {
    "outputs": (
        "Outputs",
        "Attacks need logits that are the same each time, finite, no probabilities, "
        "and that have a gradient.",
    ),
    "adjoint": (
        "Adjoint",
        "A gradient of the ideal flow is not the gradient of the numerical solve that "
        "is evaluated.",
    ),
    "gradient": (
        "Gradient",
        "Finite differences of the evaluated solve tell whether attacks are led "
        "rightly.",
    ),
    "batch_mates": (
        "Batch mates",
        "The other images of a batch must not change what is said of one.",
    ),
    "tolerance": (
        "Tolerance",
        "Predictions that change with the solver's accuracy are the solver's and not "
        "the flow's. Fixed steps are part of the model: there this is no fault.",
    ),
    "work": (
        "Cost under attack",
        "An adaptive solver can be made to work harder.",
    ),
    "longer": (
        "A longer attack",
        "PGD of many more steps must find little more, and never less.",
    ),
}
"""Title and purpose of each check, in the order of the page."""


def checks(runs: Sequence[RunReport], dots: Sequence[str]) -> str:
    """A table a run, flagged checks marked; empty where nothing was checked."""
    parts = []
    for run, dot in zip(runs, dots, strict=True):
        found = checks_of(run)
        if not found:
            continue
        rows = []
        for name in [*CHECKS, *(k for k in found if k not in CHECKS)]:
            check = found.get(name)
            if not isinstance(check, dict) or "says" not in check:
                continue
            title, purpose = CHECKS.get(name, (name, ""))
            mark = "flagged" if check.get("flags") else "in order"
            look = " class='flagged'" if check.get("flags") else ""
            rows.append(
                f"<tr{look}><th scope='row'>{escape(str(title))}"
                f"<span class='mark'>{mark}</span></th>"
                f"<td>{escape(str(check['says']))}"
                f"<span class='dim'>{escape(purpose)}</span></td></tr>"
            )
        protocol = run.evaluation.get("protocol")
        name = "single attacks" if protocol is None else f"protocol {protocol}"
        parts.append(
            f"<h3>{dot}{escape(run.name)}</h3>"
            f"<p class='dim'>Evaluated with {escape(str(name))}.</p>"
            f"<div class='scroll'><table class='checks'><tbody>{''.join(rows)}</tbody>"
            "</table></div>"
        )
    return "\n".join(["<h2>What was checked</h2>", *parts]) if parts else ""


def checks_of(run: RunReport) -> dict[str, Any]:
    """The checks that an evaluation holds; none in one of an older version."""
    found = run.evaluation.get("checks")
    return found if isinstance(found, dict) else {}
