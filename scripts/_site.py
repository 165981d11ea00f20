"""What MkDocs is told of the repository: files outside docs/, and notebooks.

Pages link to files beside docs/ as they lie in the repository. Each file that is linked
becomes a part of the site at the same place: Markdown as a page, program text as a page
that shows it, all else as it is. Notebooks, `docs/notebooks/*.py` in Jupytext's percent
format, are executed and become pages, with the notebook to download beside each; with
`JNODE_NOTEBOOKS=skip` they are shown as they are written.
"""

# MkDocs and Jupyter come with the extra `docs`, which not everybody installs.
# pyright: reportMissingImports=false

import os
import posixpath
import re
from pathlib import Path
from typing import Any, cast

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(?=[)#])")
TEXT = {".py": "python", ".sh": "bash", ".toml": "toml"}
PROJECT = ("CHANGELOG.md", "CONTRIBUTING.md")


def on_files(files: Files, config) -> Files:
    """Adds the linked files and the notebooks' pages."""
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.py")):
        files.remove(files.src_uris[f"notebooks/{path.name}"])
        for made in notebook(path, config):
            files.append(made)
    waiting = [*PROJECT]
    waiting += linked_outside("docs/" + f.src_uri for f in files.documentation_pages())
    seen = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not (ROOT / path).is_file():  # MkDocs warns of the latter
            continue
        seen.add(path)
        files.append(outside(path, config))
        if path.endswith(".md"):
            waiting += linked_outside([path])
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Leads links between the repository's files to their places in the site."""
    home = getattr(page.file, "repository_path", "docs/" + page.file.src_uri)

    def moved(match):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(home), match[1]))
        place = place_of(target)
        if files.get_file_from_path(place) is None:
            return match[1]
        return posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(moved, markdown)


def linked_outside(pages):
    """The files outside docs/ that these pages of the repository link to."""
    for page in pages:
        if not (ROOT / page).is_file():
            continue
        for link in LINK.findall((ROOT / page).read_text()):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
            if not target.startswith("docs/"):
                yield target


def place_of(path: str) -> str:
    """Where in the site a file of the repository is."""
    if path.startswith("docs/notebooks/"):
        path = path.replace(".py", ".md")
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path + ".md" if Path(path).suffix in TEXT else path


def outside(path: str, config) -> File:
    """A file of the repository that is not under docs/, as a file of the site."""
    language = TEXT.get(Path(path).suffix)
    if language:
        text = (ROOT / path).read_text()
        content = f"# {path}\n\n`````` {language}\n{text}\n``````\n"
        file = File.generated(config, place_of(path), content=content)
    else:
        file = File.generated(config, path, abs_src_path=str(ROOT / path))
        cast(Any, file).repository_path = path
    if path not in PROJECT:
        file.inclusion = InclusionLevel.NOT_IN_NAV
    return file


def notebook(path: Path, config):
    """The page of a notebook, its figures, and the executed notebook itself."""
    import jupytext
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import MarkdownExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor
    from traitlets.config import Config

    book = jupytext.read(path)
    book.metadata["language_info"] = {"name": "python"}
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    if os.environ.get("JNODE_NOTEBOOKS", "run") == "run":
        local = Config(KernelManager={"transport": "ipc"})
        NotebookClient(book, config=local, timeout=1800).execute()
    book, _ = CoalesceStreamsPreprocessor(enabled=True).preprocess(book, {})
    name = f"notebooks/{path.stem}"
    resources = {"output_files_dir": path.stem, "unique_key": path.stem}
    body, resources = MarkdownExporter().from_notebook_node(book, resources)
    head, _, rest = body.partition("\n\n")
    note = f"[Download this notebook]({path.stem}.ipynb), as it was executed here.\n\n"
    page = f"{head}\n\n{note}{rest}"
    yield File.generated(config, f"{name}.md", content=page)
    yield File.generated(config, f"{name}.ipynb", content=nbformat.writes(book))
    for figure, content in resources["outputs"].items():
        yield File.generated(config, f"notebooks/{figure}", content=content)
