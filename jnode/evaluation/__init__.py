"""Robust accuracy under attack, with checks of its validity, and named protocols."""

from jnode.evaluation import checks as checks
from jnode.evaluation.accuracy import Evaluation as Evaluation
from jnode.evaluation.accuracy import count_evaluations as count_evaluations
from jnode.evaluation.accuracy import evaluate as evaluate
from jnode.evaluation.accuracy import interval as interval
from jnode.evaluation.protocols import PROTOCOLS as PROTOCOLS
from jnode.evaluation.protocols import Protocol as Protocol
from jnode.evaluation.protocols import budgets as budgets
from jnode.evaluation.protocols import check_model as check_model
from jnode.evaluation.protocols import comparison as comparison
from jnode.evaluation.protocols import plan as plan
from jnode.evaluation.store import Store as Store
from jnode.evaluation.transfers import Transfer as Transfer
from jnode.evaluation.transfers import surrogates as surrogates
