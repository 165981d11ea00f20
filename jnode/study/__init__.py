"""Studies: declared grids of models, trainings, solvers and seeds, run and told."""

from jnode.study.cell import Cell as Cell
from jnode.study.cell import Measures as Measures
from jnode.study.cost import Cost as Cost
from jnode.study.cost import estimate as estimate
from jnode.study.measure import measure as measure
from jnode.study.page import read_rows as read_rows
from jnode.study.page import write_study as write_study
from jnode.study.plans import STUDIES as STUDIES
from jnode.study.run import gather as gather
from jnode.study.run import run_study as run_study
from jnode.study.tables import tables as tables
from jnode.study.zoo import MODELS as MODELS
from jnode.study.zoo import TRAININGS as TRAININGS
from jnode.study.zoo import configure as configure
