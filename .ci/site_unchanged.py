"""Succeeds only where the site needs no build since the merge base with main.

That is where all that changed are tests, benchmarks, and bodies of functions in the
package; docstrings, signatures and everything else are on the site. Where the merge
base is not known, as on main itself, it fails.
"""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def git(*words: str) -> str:
    run = subprocess.run(["git", *words], cwd=ROOT, text=True, capture_output=True)
    if run.returncode:
        raise LookupError(f"git {' '.join(words)}: {run.stderr.strip()}")
    return run.stdout


def merge_base() -> str:
    for main in ("origin/main", "main"):
        try:
            base = git("merge-base", "HEAD", main)
        except LookupError:
            continue
        if base != git("rev-parse", "HEAD"):
            return base.strip()
    raise LookupError("no merge base with main is known")


def shown(status: str, path: str, base: str) -> bool:
    """Whether the site may show a change: files that come or go may be linked."""
    if status != "M" or not path.endswith(".py"):
        return True
    if path.startswith("jnode/"):
        before, after = git("show", f"{base}:{path}"), (ROOT / path).read_text()
        return surface(before) != surface(after)
    return not path.startswith(("tests/", "benchmarks/"))


def surface(source: str) -> str:
    """A module without the bodies of its functions, but with their docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [ast.Expr(ast.Constant(ast.get_docstring(node)))]
    return ast.dump(tree)


def reason() -> str | None:
    """Why the site is to be built, if it is."""
    try:
        base = merge_base()
        diff = git("diff", "--name-status", "--no-renames", base).splitlines()
        new = git("ls-files", "--others", "--exclude-standard").splitlines()
        changes = [line.split("\t", 1) for line in diff] + [["A", path] for path in new]
        return next((path for s, path in changes if shown(s, path, base)), None)
    except (LookupError, SyntaxError) as error:
        return str(error)


if __name__ == "__main__":
    why = reason()
    print(f"The site is built: {why}." if why else "The site is as before: not built.")
    sys.exit(why is not None)
