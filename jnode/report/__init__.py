"""Tables, figures and one self-contained HTML page."""

from jnode.report import figures as figures
from jnode.report.page import write as write
from jnode.report.pictures import Pictures as Pictures
from jnode.report.results import RunReport as RunReport
from jnode.report.results import read_run as read_run
from jnode.report.results import table as table
