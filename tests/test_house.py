"""The house: which file may import which, read from the source; and how long files are.

Imports inside functions count; those under `if TYPE_CHECKING` do not.
"""

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST, LONGEST_FUNCTION = 400, 60
# Of the mathematics, without docstrings and comments; and of the whole package.
MOST_LINES, MOST_FILES = 7600, 113

# What proves, and what it may never need.
MATHEMATICS = (
    "_batches",
    "_checks",
    "activations",
    "bounds",
    "certify",
    "constraints",
    "fields",
    "linear",
    "models",
    "solvers",
)
HARNESS = (
    "attacks",
    "data",
    "enclosed_runs",
    "evaluation",
    "report",
    "runs",
    "smoothed_runs",
    "study",
    "train",
)
TOOLS = ("optax", "orbax", "tqdm", "tyro")
# Long loops that draw a progress bar if they are asked to: imported when they run.
EXCEPTIONS = {
    ("jnode.certify.accuracy", "jnode._progress"),
    ("jnode.certify.smoothing", "jnode._progress"),
}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted((ROOT / "jnode").rglob("*.py"))}


def imported(source, files):
    """The modules that a file imports: of these `files` by name, others as written."""
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                visit(other)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute here"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in files else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


IMPORTS = {name: imported(path.read_text(), FILES) for name, path in FILES.items()}


def reached(graph, start):
    """All that a file needs, through others too; itself only if it is in a circle."""
    seen, waiting = set(), [start]
    while waiting:
        for name in graph.get(waiting.pop(), ()):
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return seen


def circles(graph):
    return sorted(name for name in graph if name in reached(graph, name))


def test_no_circle():
    assert circles(IMPORTS) == []


def test_the_mathematics_needs_no_harness():
    rooms = {f"jnode.{room}" for room in MATHEMATICS}
    forbidden = {f"jnode.{room}" for room in HARNESS} | set(TOOLS)
    files = [name for name in FILES if _root(name) in rooms]
    assert rooms == {_root(name) for name in files}
    graph = {
        name: {tool for tool in tools if (name, tool) not in EXCEPTIONS}
        for name, tools in IMPORTS.items()
    }
    for name in files:
        needed = {_root(other) for other in reached(graph, name)}
        assert needed & forbidden == set(), name


def test_exceptions_are_needed():
    assert all(tool in IMPORTS[name] for name, tool in EXCEPTIONS)


def _root(name):
    """The room of one of our modules, and the package of another's."""
    return ".".join(name.split(".")[: 2 if name.startswith("jnode.") else 1])


def _lines_of(node):
    """The line numbers of a part of a program."""
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def functions(source):
    """Each function's name and its number of lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, len(_lines_of(node))


def test_no_function_is_long():
    lengths = {
        (name, function): lines
        for name, path in FILES.items()
        for function, lines in functions(path.read_text())
    }
    assert {k: n for k, n in lengths.items() if n > LONGEST_FUNCTION} == {}


def code_lines(source):
    """How many lines hold code: neither blank, nor comments or docstrings alone."""
    lines, tree = set(), ast.parse(source)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER, tokenize.STRING):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines.difference_update(_lines_of(node))
    return len(lines)


def test_the_house_is_small():
    rooms = {f"jnode.{room}" for room in MATHEMATICS}
    ours = [path for name, path in FILES.items() if _root(name) in rooms]
    assert sum(code_lines(path.read_text()) for path in ours) <= MOST_LINES
    assert sum(path.name != "__init__.py" for path in FILES.values()) <= MOST_FILES


def test_private_names_stay_at_home():
    """No file imports a name with an underscore in front from another one."""
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module != "jnode":
                private = [x.name for x in node.names if x.name.startswith("_")]
                assert private == [], (name, node.module, private)


def test_lines_of_code_are_counted():
    source = """'''A docstring,
of two lines.'''

# A comment.
x = (
    1  # one
)


def f():
    '''Another.'''
    return x
"""
    assert code_lines(source) == 5
    assert dict(functions(source)) == {"f": 3}


def test_no_file_is_long():
    lengths = {k: len(path.read_text().splitlines()) for k, path in FILES.items()}
    assert {k: n for k, n in lengths.items() if n > LONGEST} == {}


def test_imports_are_read_as_python_means_them():
    files = {"jnode.a": None, "jnode.a.b": None, "jnode.c": None}
    source = """
from typing import TYPE_CHECKING
import os.path
from jnode.a import b, other
if TYPE_CHECKING:
    from jnode.d import hidden
else:
    import shown
def f():
    from jnode import c
"""
    expected = {"typing", "os.path", "jnode.a.b", "jnode.a", "shown", "jnode.c"}
    assert imported(source, files) == expected
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "os"}}) == ["b", "c"]
