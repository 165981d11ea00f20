"""Public docstrings: what is raised is documented, and arrays have shapes."""

import ast
import importlib
import inspect
import re
import textwrap
import typing
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

import jnode

PACKAGE = Path(jnode.__file__).parent
# Names of axes in brackets, as in [n, height, width, channels] or [batch, *state].
SHAPE = re.compile(r"\[\*?[a-z_]+(, [*\w ]+)*\]")
# Their docstring is that of the class.
CONSTRUCTORS = ("__init__", "__post_init__", "__check_init__")


def public():
    """Every class and function of the package's own that a public name gives."""
    found = {}
    for name in jnode._MODULES:
        module = importlib.import_module(f"jnode.{name}")
        for key, value in vars(module).items():
            home = getattr(value, "__module__", None) or ""
            single = not hasattr(module, "__path__") and home != module.__name__
            if key.startswith("_") or not home.startswith("jnode") or single:
                continue
            if inspect.isclass(value) or callable(value):
                found[f"{home}.{key}"] = value
    return found


def functions(name, value):
    """The functions of a public name, each with its docstring."""
    if not inspect.isclass(value):
        yield name, inspect.unwrap(value), value.__doc__ or ""
        return
    for key, member in vars(value).items():
        if key.startswith("_") and key not in ("__call__", *CONSTRUCTORS):
            continue
        member = getattr(member, "fget", None) or getattr(member, "__func__", member)
        function = inspect.unwrap(member)
        if not inspect.isfunction(function):
            continue
        if not Path(function.__code__.co_filename).is_relative_to(PACKAGE):
            continue  # a dataclass's generated constructor
        docs = [
            vars(cls)[key].__doc__ or "" for cls in value.__mro__ if key in vars(cls)
        ]
        text = next((doc for doc in docs if doc), "")
        if key in (*CONSTRUCTORS, "__call__"):
            text += value.__doc__ or ""
        yield f"{name}.{key}", function, text


FUNCTIONS = {
    label: (function, text)
    for name, value in public().items()
    for label, function, text in functions(name, value)
}


def body(function):
    """A function's own nodes, without those of functions inside it."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    found, waiting = [], list(ast.iter_child_nodes(tree))
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            found.append(node)
            waiting += ast.iter_child_nodes(node)
    return found


def raises(function):
    """Whether the function's own body raises an error of its own."""
    return any(isinstance(x, ast.Raise) and x.exc is not None for x in body(function))


def is_shapeless(annotation):
    """Whether an annotation admits an array and says nothing of its shape."""
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return False
    parts = typing.get_args(annotation)
    if annotation in (jaxtyping.Array, np.ndarray, jaxtyping.ArrayLike):
        return True
    return any(is_shapeless(part) for part in parts)


def test_names_are_found():
    assert len(FUNCTIONS) > 300
    for label in ("jnode.solvers.solve.solve", "jnode.certify.radius.radius"):
        assert label in FUNCTIONS


@pytest.mark.parametrize("label", FUNCTIONS)
def test_what_is_raised_is_documented(label):
    function, text = FUNCTIONS[label]
    assert "Raises" in text or not raises(function)


@pytest.mark.parametrize("label", FUNCTIONS)
def test_arrays_have_shapes(label):
    function, text = FUNCTIONS[label]
    hints = inspect.signature(function).parameters.values()
    if any(is_shapeless(parameter.annotation) for parameter in hints):
        assert SHAPE.search(text), "give the shape in jaxtyping or in the docstring"
