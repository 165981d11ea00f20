"""One self-contained HTML page."""

import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from jnode.report import figures
from jnode.report.run_report import RunReport
from jnode.report.table import cells
from jnode.train.files import write_atomic

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; --warn: #D55E00; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { margin-bottom: .2rem; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; } .scroll { overflow-x: auto; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid var(--line);
         white-space: nowrap; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
tr.group td { font-weight: 600; background: var(--soft); text-align: left; }
figure { margin: 1.5rem 0; } figcaption { max-width: 46rem; opacity: .85; }
img { max-width: 100%; background: white; border-radius: 4px; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem; align-items: start; }
.pair figure { margin: .5rem 0; flex: 1 1 20rem; }
.flag { border-left: 4px solid var(--warn); padding: .4rem .8rem; margin: .5rem 0;
        background: var(--soft); }
pre { overflow-x: auto; background: var(--soft); padding: .8rem; font-size: .85rem; }
@media print { details { display: none; } figure { break-inside: avoid; } }
"""


def write(runs: Sequence[RunReport], path: str | os.PathLike) -> Path:
    """Writes the report of some runs as one HTML page that needs nothing else.

    **Raises:** `ValueError` where there is no run.
    """
    if not runs:
        raise ValueError("runs must hold at least one evaluated run, not none.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render(runs)
    write_atomic(path, lambda file: file.write(page.encode()))
    return path


def render(runs: Sequence[RunReport]) -> str:
    """The page as text."""
    names = " · ".join(escape(run.name) for run in runs)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>jnode: {names}</title><style>{STYLE}</style></head><body>",
        f"<h1>Robustness of neural ODEs</h1><p>{names}</p>",
        _what(runs),
        _flags(runs),
        "<h2>Results</h2>",
        _table(runs),
        "<p>Accuracy in percent. Accuracy <em>under attack</em> is an empirical upper "
        "bound: a stronger attack may lower it. <em>Certified</em> accuracy is a proven "
        "lower bound: no attack within the radius can lower it.</p>",
        _notes(runs),
    ]
    for norm in ("linf", "l2"):
        if any(r["norm"] == norm for run in runs for r in run.evaluation["worst_case"]):
            parts.append(
                _figure(
                    figures.robustness(runs, norm),
                    "Robust accuracy against epsilon: per sample the worst case over "
                    "all attacks of the norm (empirical).",
                )
            )
    if any(run.evaluation["certified_accuracy"] for run in runs):
        parts.append(
            _figure(
                figures.certified(runs),
                "Certified accuracy (solid, proven) below attacked accuracy (dashed, "
                "empirical): the truth lies in the shaded gap.",
            )
        )
    for run in runs:
        if run.pictures is not None:
            parts += [
                f"<h2>{escape(run.name)}</h2>",
                _figure(
                    figures.images(run.pictures, run.name),
                    "Images, the same images attacked, and what was added; above each "
                    "the prediction.",
                ),
                _figure(
                    figures.trajectories(run.pictures, run.name),
                    _envelope_caption(run),
                ),
            ]
    if any(run.metrics for run in runs):
        parts += ["<h2>Training</h2>", _figure(figures.training(runs), "")]
    parts.append("<h2>Details</h2>")
    for run in runs:
        text = json.dumps({"config": run.config, "evaluation": run.evaluation})
        pretty = escape(json.dumps(json.loads(text), indent=2))
        parts.append(
            f"<details><summary>{escape(run.name)}: configuration and evaluation"
            f"</summary><pre>{pretty}</pre></details>"
        )
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _figure(figure, caption: str) -> str:
    data = figures.to_base64(figure)
    return (
        f"<figure><img alt='{escape(caption, quote=True)}' "
        f"src='data:image/png;base64,{data}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _envelope_caption(run: RunReport) -> str:
    caption = (
        "Distance between clean and attacked trajectories along the solve, relative to "
        "where it began"
    )
    if run.evaluation["certified_accuracy"]:
        return f"{caption}, inside the envelopes that bound the exact flow."
    return f"{caption}. No envelope: nothing bounds this field."


def _what(runs: Sequence[RunReport]) -> str:
    e = runs[0].evaluation
    versions = ", ".join(f"{k} {v}" for k, v in e["versions"].items())
    text = (
        f"{e['num_examples']} images of {e['dataset']} ({e['split']}), trained on "
        f"{runs[0].config['num_train']} images, seed {e['seed']}. "
        f"Device: {e['device']}. {versions}."
    )
    return f"<p>{escape(text)}</p>"


def _flags(runs: Sequence[RunReport]) -> str:
    found = [(run.name, flag) for run in runs for flag in run.evaluation["flags"]]
    if not found:
        return "<p>No sign of masked gradients was found.</p>"
    return "".join(
        f"<div class='flag'><b>{escape(name)}</b>: {escape(flag)}</div>"
        for name, flag in found
    )


def _notes(runs: Sequence[RunReport]) -> str:
    notes = [
        f"<li><b>{escape(run.name)}</b>: certificate "
        f"{escape(run.evaluation['certificate'])}</li>"
        for run in runs
    ]
    return f"<ul>{''.join(notes)}</ul>"


def _table(runs: Sequence[RunReport]) -> str:
    header, rows = cells(runs)
    lines = ["<div class='scroll'><table>"]
    for i, label in enumerate(header):
        tag = "th" if i == 0 else "td"
        if label.startswith("certified") and not header[i - 1].startswith("certified"):
            span = len(rows) + 1
            title = "certified accuracy (proven lower bound)"
            lines.append(f"<tr class='group'><td colspan='{span}'>{title}</td></tr>")
        if header[i - 1] == "clean":
            span = len(rows) + 1
            title = "accuracy under attack (empirical upper bound)"
            lines.append(f"<tr class='group'><td colspan='{span}'>{title}</td></tr>")
        values = "".join(f"<{tag}>{escape(row[i])}</{tag}>" for row in rows)
        lines.append(f"<tr><{tag}>{escape(label)}</{tag}>{values}</tr>")
    lines.append("</table></div>")
    return "\n".join(lines)
