"""One self-contained HTML page."""

import base64
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from jnode._files import as_path, write_atomic
from jnode.report import figures, parts, solve_figures
from jnode.report.results import RunReport, distinct
from jnode.report.style import STYLE, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# With this policy browsers do not let the page load or run anything.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

CAPTIONS = {
    "certified": "Solid: accuracy proven to hold within the radius (a lower bound). "
    "Dashed: the images that stayed robust (an empirical upper bound, measured at the "
    "markers and joined to guide the eye). Below each marker the true robust accuracy "
    "lies in the shaded gap.",
    "robustness": "Images that no attack in the norm and budget succeeded on: an "
    "empirical upper bound on robust accuracy, which a stronger attack may lower.",
    "trajectories": "The distance between the trajectories of a clean and an attacked "
    "image, relative to the initial distance: measured on the numerical solve (thin "
    "lines), and the certified envelopes of the exact flow (thick). Shaded: the region "
    "that the envelopes allow.",
    "step_lengths": "The L2 distance that the state moves in each step of the solve: "
    "the mean over some test images. If it does not move after the first step, the "
    "other steps add nothing.",
    "training": "Means over the training batches of each epoch; losses of different "
    "kinds cannot be compared.",
}


def write(runs: Sequence[RunReport], path: str | os.PathLike) -> Path:
    """Writes the report of some runs as one HTML page that needs nothing else.

    **Arguments:** runs from `read_run`, and the page to write, which replaces an older
    one atomically.

    **Returns:** the path.

    **Raises:** `ValueError` where there is no run, `ImportError` without Matplotlib.
    """
    page = render(runs)
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A hostile name may contain lone surrogates, which UTF-8 cannot encode.
    write_atomic(path, lambda file: file.write(page.encode(errors="replace")))
    return path


def render(runs: Sequence[RunReport]) -> str:
    """The page as text. Arguments and errors are those of `write`."""
    runs = distinct(runs)
    names = escape(" · ".join(run.name for run in runs))
    body = [
        "<h1>Robustness of neural ODEs</h1>",
        parts.facts(runs),
        parts.flags(runs),
        parts.cards(runs),
        "<h2>Results</h2>",
        parts.results(runs),
        "<p class='dim'>Accuracy <em>under attack</em> is an empirical upper bound on "
        "robust accuracy: a stronger attack may lower it. <em>Certified</em> accuracy "
        "is a proven lower bound: no attack within the radius can lower it.</p>",
    ]
    body.append(parts.checks(runs))
    if any(run.evaluation["certified_accuracy"] for run in runs):
        body += [
            "<h2>What is proven</h2>",
            _drawn("certified", figures.certified(runs)),
        ]
    if any(run.evaluation["worst_case"] for run in runs):
        body += [
            "<h2>Under attack</h2>",
            _drawn("robustness", figures.robustness(runs)),
        ]
    body += _pictures(runs)
    if any(run.metrics for run in runs):
        body += ["<h2>Training</h2>", _drawn("training", figures.training(runs))]
    body += ["<h2>What was run</h2>", parts.setup(runs), *map(parts.details, runs)]
    return document(names, body)


def document(title: str, body: Sequence[str]) -> str:
    """A complete page around escaped parts, which can neither load nor run anything."""
    return "\n".join(
        [
            "<!doctype html>",
            "<html lang='en'><head><meta charset='utf-8'>",
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>jnode: {title}</title><style>{STYLE}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def _pictures(runs: Sequence[RunReport]) -> list[str]:
    if not any(run.pictures is not None for run in runs):
        return []
    body = ["<h2>Images and their adversarial examples</h2>"]
    for i, run in enumerate(runs):
        p = run.pictures
        if p is None:
            continue
        changed = int((p.clean_predictions != p.adversarial_predictions).sum())
        caption = (
            f"Images before and after {p.attack}, and what it added. It "
            f"changed {changed} of these {len(p.labels)} predictions."
        )
        body.append(f"<h3>{parts.dot(i)}{escape(run.name)}</h3>")
        body.append(figure_html(figures.images(p), caption))
    body.append("<h2>Along the solve</h2>")
    body.append(_drawn("trajectories", solve_figures.trajectories(runs)))
    body.append(_drawn("step_lengths", solve_figures.step_lengths(runs)))
    return body


def _drawn(name: str, figure: "Figure") -> str:
    return figure_html(figure, CAPTIONS[name])


def figure_html(figure: "Figure", caption: str) -> str:
    """A figure within the page, and its caption."""
    data = base64.b64encode(to_png(figure)).decode()
    width = round(96 * figure.get_size_inches()[0])
    return (
        f"<figure><img width='{width}' alt='{escape(caption)}' "
        f"src='data:image/png;base64,{data}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
