"""Fast neural ODEs with certified robustness, in JAX.

Names are imported when they are first used, so that a vector field loads neither
training nor reports.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jnode._process import own_version

if TYPE_CHECKING:
    from jnode import activations as activations
    from jnode import attacks as attacks
    from jnode import bounds as bounds
    from jnode import certify as certify
    from jnode import constraints as constraints
    from jnode import data as data
    from jnode import enclosed_runs as enclosed_runs
    from jnode import evaluation as evaluation
    from jnode import fields as fields
    from jnode import linear as linear
    from jnode import models as models
    from jnode import report as report
    from jnode import runs as runs
    from jnode import sharding as sharding
    from jnode import smoothed_runs as smoothed_runs
    from jnode import solvers as solvers
    from jnode import study as study
    from jnode import train as train
    from jnode.bounds import Bounds as Bounds
    from jnode.certify import amplification as amplification
    from jnode.constraints import resolve as resolve
    from jnode.evaluation import evaluate as evaluate
    from jnode.fields import AbstractVectorField as AbstractVectorField
    from jnode.fields import Certified as Certified
    from jnode.fields import FreeField as FreeField
    from jnode.fields import GradientFlowField as GradientFlowField
    from jnode.fields import HamiltonianField as HamiltonianField
    from jnode.fields import LowPrecisionField as LowPrecisionField
    from jnode.fields import OrthoField as OrthoField
    from jnode.fields import PiecewiseField as PiecewiseField
    from jnode.fields import SkewField as SkewField
    from jnode.models import ModelConfig as ModelConfig
    from jnode.models import ODEClassifier as ODEClassifier
    from jnode.models import build as build
    from jnode.models import load as load
    from jnode.models import pretrained as pretrained
    from jnode.models.batched import batched as batched
    from jnode.solvers import Solution as Solution
    from jnode.solvers import Solver as Solver
    from jnode.solvers import solve as solve

__version__ = own_version()

_MODULES = (
    "activations",
    "attacks",
    "bounds",
    "certify",
    "constraints",
    "data",
    "enclosed_runs",
    "evaluation",
    "fields",
    "linear",
    "models",
    "report",
    "runs",
    "sharding",
    "smoothed_runs",
    "solvers",
    "study",
    "train",
)
# The module of each name: the imports above again, which are for type checkers.
_HOMES = {
    "AbstractVectorField": "fields",
    "Bounds": "bounds",
    "Certified": "fields",
    "FreeField": "fields",
    "GradientFlowField": "fields",
    "HamiltonianField": "fields",
    "LowPrecisionField": "fields",
    "ModelConfig": "models",
    "ODEClassifier": "models",
    "OrthoField": "fields",
    "PiecewiseField": "fields",
    "SkewField": "fields",
    "Solution": "solvers",
    "Solver": "solvers",
    "amplification": "certify",
    "batched": "models.batched",
    "build": "models",
    "evaluate": "evaluation",
    "load": "models",
    "pretrained": "models",
    "resolve": "constraints",
    "solve": "solvers",
}

__all__ = sorted([*_MODULES, *_HOMES])  # pyright: ignore[reportUnsupportedDunderAll]  # lazy


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"jnode.{name}")
    if name in _HOMES:
        found = getattr(importlib.import_module(f"jnode.{_HOMES[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'jnode' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
