"""Checks for the traps that make robust accuracies look better than they are.

Each returns plain data: what was measured, `says` (the same in words) and `flags`.
"""

from jnode.evaluation.checks.adjoint import adjoint as adjoint
from jnode.evaluation.checks.batch_mates import batch_mates as batch_mates
from jnode.evaluation.checks.gradient import gradient as gradient
from jnode.evaluation.checks.gradient import held_steps as held_steps
from jnode.evaluation.checks.longer import longer as longer
from jnode.evaluation.checks.tolerance import tolerance as tolerance
from jnode.evaluation.checks.work import work as work
