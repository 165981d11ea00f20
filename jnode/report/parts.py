"""The textual parts of the page; all text from runs is escaped here."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from jnode.report.results import (
    NONE,
    NORMS,
    RunReport,
    percent,
    sections,
    worth_showing,
)
from jnode.report.style import colour

ALWAYS = ("model.field", "model.lipschitz", "loss.name", "epochs")


def dot(i: int) -> str:
    """The colour of the i-th run, as in the figures."""
    return f"<span class='dot' style='--c:{colour(i)}'></span>"


def facts(runs: Sequence[RunReport]) -> str:
    """What was run: on which images and which machine, with which versions."""
    templates = (
        "{num_examples} {split} images of {dataset}",
        "trained on {num_train}",
        "attacks' seed {seed}",
        "device: {device}",
        "{versions}",
    )
    texts = []
    for template in templates:
        said = [template.format(**_flat_evaluation(run)) for run in runs]
        if len(set(said)) > 1:
            said = [f"{run.name}: {text}" for run, text in zip(runs, said, strict=True)]
        else:
            said = said[:1]
        texts += said
    return f"<p class='dim'>{escape(' · '.join(texts))}</p>"


def _flat_evaluation(run: RunReport) -> dict[str, Any]:
    e = run.evaluation
    trained = e.get("num_train", run.config.get("num_train", "an unknown number of"))
    versions = ", ".join(f"{k} {v}" for k, v in e["versions"].items())
    return {**e, "num_train": trained, "versions": versions}


def flags(runs: Sequence[RunReport]) -> str:
    """The flags of all runs, shown at the top."""
    found = [(run.name, flag) for run in runs for flag in run.evaluation["flags"]]
    boxes = [f"<b>{escape(name)}</b>: {escape(str(flag))}" for name, flag in found]
    keys = ("dataset", "split", "num_examples")
    if len({tuple(str(run.evaluation[k]) for k in keys) for run in runs}) > 1:
        boxes.append(
            "<b>Not comparable</b>: these runs were evaluated on different images."
        )
    if not found:
        note = (
            "<p>The checks for masked gradients (do gradients vanish, does a weak "
            "attack do better than a strong one, and those listed below) raised no "
            "flag.</p>"
        )
    else:
        note = ""
    return "".join(f"<div class='flag' role='note'>{box}</div>" for box in boxes) + note


def cards(runs: Sequence[RunReport]) -> str:
    """Three numbers for each run: clean, attacked and certified accuracy."""
    radius = min(worth_showing(runs), default=None)
    budget = _hardest(runs)
    made = []
    for i, run in enumerate(runs):
        e = run.evaluation
        numbers = [("clean", e["clean_accuracy"])]
        if budget is not None:
            found = [
                row["robust_accuracy"]
                for row in e["worst_case"]
                if (row["norm"], row["epsilon"]) == budget
            ]
            label = f"under attack, {_norm(budget[0])} {budget[1]:.3g}"
            numbers.append((label, found[0] if found else None))
        if radius is not None:
            proven = {
                r["radius"]: r["certified_accuracy"] for r in e["certified_accuracy"]
            }
            label = f"proven, {_norm('l2')} {radius:g}"
            numbers.append((label, proven.get(radius)))
        items = "".join(
            f"<div><dt>{label}</dt><dd>{_big(value)}</dd></div>"
            for label, value in numbers
        )
        made.append(
            f"<div class='card' style='--c:{colour(i)}'><h2>{escape(run.name)}</h2>"
            f"<dl>{items}</dl></div>"
        )
    return f"<div class='cards'>{''.join(made)}</div>"


def _big(value: float | None) -> str:
    return NONE if value is None else f"{percent(value)}<small> %</small>"


def _norm(norm: str) -> str:
    return {
        "linf": "L<sub>∞</sub>",
        "l2": "L<sub>2</sub>",
        "l1": "L<sub>1</sub>",
    }.get(norm, NORMS.get(norm, ""))


def _hardest(runs: Sequence[RunReport]) -> tuple[str, float] | None:
    """The budget of the attack with the most steps: Linf first, then the smallest."""
    rows = [
        r for run in runs for r in run.evaluation["attacks"] if r["norm"] != "sigma"
    ]
    if not rows:
        return None
    best = max(rows, key=lambda r: (r["norm"] == "linf", r["steps"], -r["epsilon"]))
    return best["norm"], best["epsilon"]


def results(runs: Sequence[RunReport]) -> str:
    """The table, with a bar behind every share; bars of what is proven are darker."""
    head = "".join(
        f"<th scope='col'>{dot(i)}{escape(run.name)}</th>" for i, run in enumerate(runs)
    )
    lines = [
        f"<div class='scroll'><table class='results' style='--runs:{len(runs)}'>",
        f"<thead><tr><th>accuracy in %</th>{head}</tr></thead><tbody>",
    ]
    for section in sections(runs):
        if section.title:
            lines.append(
                f"<tr class='group'><th colspan='{len(runs) + 1}'>"
                f"{escape(section.title)}</th></tr>"
            )
        kind = "bar proven" if section.title.startswith("certified") else "bar"
        for line in section.lines:
            shares = line.shares or [None] * len(runs)
            made = ""
            for i, (cell, share) in enumerate(zip(line.cells, shares, strict=True)):
                look = ""
                if share is not None:
                    fill = f"--c:{colour(i)};--v:{100 * share:.1f}%"
                    look = f" class='{kind}' style='{fill}'"
                made += f"<td{look}>{escape(cell)}</td>"
            lines.append(f"<tr><th scope='row'>{escape(line.label)}</th>{made}</tr>")
    lines.append("</tbody></table></div>")
    return "\n".join(lines)


def setup(runs: Sequence[RunReport]) -> str:
    """The settings in which the runs differ, and the assumptions of certificates."""
    flat = [_flatten(run.config.get("train", run.config)) for run in runs]
    keys = list(dict.fromkeys(k for settings in flat for k in settings))
    shown = [
        k
        for k in keys
        if k in ALWAYS or len({str(settings.get(k)) for settings in flat}) > 1
    ]
    rows = [
        (k.replace("_", " "), [_say(settings.get(k)) for settings in flat])
        for k in shown
    ]
    rows.append(("certificate", [str(run.evaluation["certificate"]) for run in runs]))
    # Older evaluations did not write these.
    rounding = [
        str(run.evaluation.get("rounding", NONE))
        if run.evaluation["certified_accuracy"]
        else NONE
        for run in runs
    ]
    rows.append(("its rounding", rounding))
    assumed = ["; ".join(run.evaluation.get("assumed", [])) for run in runs]
    if any(assumed):
        rows.append(("its assumptions", [text or NONE for text in assumed]))
    head = "".join(
        f"<th scope='col'>{dot(i)}{escape(run.name)}</th>" for i, run in enumerate(runs)
    )
    body = "".join(
        f"<tr><th scope='row'>{escape(label)}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for label, cells in rows
    )
    return (
        "<div class='scroll'><table><thead><tr><th>setting</th>"
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _say(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NONE if value is None else str(value)


CHECKS = {
    "outputs": (
        "Outputs",
        "Attacks need finite logits, not probabilities, that are the same at each call "
        "and have a gradient.",
    ),
    "adjoint": (
        "Adjoint",
        "A gradient of the ideal flow is not the gradient of the numerical solve that "
        "is evaluated.",
    ),
    "gradient": (
        "Gradient",
        "Finite differences of the evaluated solve show whether the gradient that "
        "attacks follow is right.",
    ),
    "batch_independence": (
        "Batch independence",
        "The prediction for one image must not depend on the rest of its batch.",
    ),
    "tolerance": (
        "Tolerance",
        "Predictions that change with the solver's accuracy depend on its error, not "
        "only on the flow. For fixed steps, which are part of the model, this is no "
        "fault.",
    ),
    "nfe": (
        "NFE under attack",
        "A slowdown attack may make an adaptive solver take many more steps.",
    ),
    "convergence": (
        "Convergence of the attack",
        "PGD with many more steps should succeed on few more images, and never fewer.",
    ),
}
"""Title and purpose of each check, in the order of the page."""


def checks(runs: Sequence[RunReport]) -> str:
    """A table for each run, with flagged checks marked; empty without checks."""
    parts = []
    for i, run in enumerate(runs):
        found = checks_of(run)
        if not found:
            continue
        rows = []
        for name in [*CHECKS, *(k for k in found if k not in CHECKS)]:
            check = found.get(name)
            if not isinstance(check, dict) or "summary" not in check:
                continue
            title, purpose = CHECKS.get(name, (name, ""))
            mark = "flagged" if check.get("flags") else "in order"
            look = " class='flagged'" if check.get("flags") else ""
            rows.append(
                f"<tr{look}><th scope='row'>{escape(str(title))}"
                f"<span class='mark'>{mark}</span></th>"
                f"<td>{escape(str(check['summary']))}"
                f"<span class='dim'>{escape(purpose)}</span></td></tr>"
            )
        protocol = run.evaluation.get("protocol")
        name = "single attacks" if protocol is None else f"protocol {protocol}"
        parts.append(
            f"<h3>{dot(i)}{escape(run.name)}</h3>"
            f"<p class='dim'>Evaluated with {escape(str(name))}.</p>"
            f"<div class='scroll'><table class='checks'><tbody>{''.join(rows)}</tbody>"
            "</table></div>"
        )
    return "\n".join(["<h2>What was checked</h2>", *parts]) if parts else ""


def checks_of(run: RunReport) -> dict[str, Any]:
    """The checks of an evaluation; older versions have none."""
    found = run.evaluation.get("checks")
    return found if isinstance(found, dict) else {}


def details(run: RunReport) -> str:
    """All data of the run, in a collapsed section."""
    content = {"config": run.config, "evaluation": run.evaluation}
    pretty = escape(json.dumps(content, indent=2, ensure_ascii=False, default=str))
    return (
        f"<details><summary>{escape(run.name)}: configuration and evaluation"
        f"</summary><pre>{pretty}</pre></details>"
    )
