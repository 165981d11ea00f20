"""Studies: declared grids of models, trainings, solvers and seeds, with reports."""

from jnode.study.cells import MODELS as MODELS
from jnode.study.cells import TRAININGS as TRAININGS
from jnode.study.cells import Cell as Cell
from jnode.study.cells import Measures as Measures
from jnode.study.cells import configure as configure
from jnode.study.measure import measure as measure
from jnode.study.plans import STUDIES as STUDIES
from jnode.study.report import write_study as write_study
from jnode.study.run import gather as gather
from jnode.study.run import read_rows as read_rows
from jnode.study.run import run_study as run_study
from jnode.study.tables import tables as tables
