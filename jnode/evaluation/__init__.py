"""Robust accuracy that nobody has to doubt: attacks in order, checks, protocols."""

from jnode.evaluation import checks as checks
from jnode.evaluation.cost import Cost as Cost
from jnode.evaluation.cost import describe as describe
from jnode.evaluation.loop import Evaluation as Evaluation
from jnode.evaluation.loop import evaluate as evaluate
from jnode.evaluation.loop import worst_case as worst_case
from jnode.evaluation.protocols import PROTOCOLS as PROTOCOLS
from jnode.evaluation.protocols import Protocol as Protocol
from jnode.evaluation.protocols import budgets as budgets
from jnode.evaluation.protocols import comparison as comparison
from jnode.evaluation.protocols import plan as plan
from jnode.evaluation.store import Attacked as Attacked
from jnode.evaluation.store import Store as Store
from jnode.evaluation.transfers import Transfer as Transfer
from jnode.evaluation.transfers import twins as twins
