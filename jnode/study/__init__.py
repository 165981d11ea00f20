"""Studies: models, trained or given, measured alike, with tables and figures."""

from jnode.study import grids as grids
from jnode.study.cells import MODELS as MODELS
from jnode.study.cells import TRAININGS as TRAININGS
from jnode.study.cells import Cell as Cell
from jnode.study.cells import Measures as Measures
from jnode.study.cells import Subject as Subject
from jnode.study.cells import configure as configure
from jnode.study.compare import orders as orders
from jnode.study.compare import paired as paired
from jnode.study.compare import pareto as pareto
from jnode.study.compare import pareto_figure as pareto_figure
from jnode.study.compare import solvers_compared as solvers_compared
from jnode.study.measure import measure as measure
from jnode.study.report import write_study as write_study
from jnode.study.run import gather as gather
from jnode.study.run import read_rows as read_rows
from jnode.study.run import run_study as run_study
from jnode.study.tables import tables as tables
