"""Numerical solvers: methods, steps and adjoints, and the functions that solve."""

from jnode.solvers.ladder import LadderController as LadderController
from jnode.solvers.schedule import Schedule as Schedule
from jnode.solvers.schedule import plan as plan
from jnode.solvers.solution import Solution as Solution
from jnode.solvers.solve import solve as solve
from jnode.solvers.solve import solve_batch as solve_batch
from jnode.solvers.solve import trajectory as trajectory
from jnode.solvers.solver import Solver as Solver
from jnode.solvers.solver import join as join
from jnode.solvers.tableaus import SOLVERS as SOLVERS
from jnode.solvers.tableaus import tableau as tableau
