"""A study told: Markdown tables, PNG figures, and one self-contained HTML page."""

import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from jnode._files import write_atomic
from jnode.report.figures import to_png
from jnode.report.page import document, figure_html
from jnode.study.figures import CAPTIONS, figures
from jnode.study.run import RESULTS
from jnode.study.tables import Row, tables


def read_rows(paths: Sequence[str | os.PathLike]) -> list[Row]:
    """The rows of studies: of folders with a `results.jsonl`, or of such files.

    **Raises:** `FileNotFoundError` for neither, `ValueError` for a damaged file.
    """
    rows = []
    for given in paths:
        path = Path(given)
        path = path / RESULTS if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is not there: run scripts/study.py first, and name its folder."
            )
        try:
            rows += [json.loads(line) for line in path.read_text().splitlines()]
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    return rows


def write_study(rows: Sequence[Row], folder: str | os.PathLike, name: str) -> Path:
    """Writes `name`.md, `name`.html and the figures, `name`-*.png.

    **Arguments:** rows as of `run_study`; where to; how to call the files.

    **Returns:** the path of the page.

    **Raises:** `ValueError` where there is no row, `ImportError` without Matplotlib.
    """
    if not rows:
        raise ValueError("rows must hold at least one finished cell, not none.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    told = tables(rows)
    text = "\n\n".join(table.markdown() for table in told) + "\n"
    drawn = figures(rows)
    body = [f"<h1>Study: {escape(name)}</h1>", *(table.html() for table in told)]
    for key, figure in drawn.items():
        part, _, dataset = key.partition("-")
        body.append(f"<h2>{escape(part.capitalize())} on {escape(dataset)}</h2>")
        body.append(figure_html(figure, CAPTIONS[part]))
        png = to_png(figure)
        write_atomic(folder / f"{name}-{key}.png", lambda f, png=png: f.write(png))
    write_atomic(folder / f"{name}.md", lambda file: file.write(text.encode()))
    page = folder / f"{name}.html"
    html = document(f"study {name}", body)
    write_atomic(page, lambda f: f.write(html.encode(errors="replace")))
    return page
