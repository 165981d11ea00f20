"""Tables, figures and one self-contained HTML page."""

from jnode.report import figures as figures
from jnode.report.page import write as write
from jnode.report.pictures import Pictures as Pictures
from jnode.report.run_report import RunReport as RunReport
from jnode.report.run_report import read_run as read_run
from jnode.report.table import table as table
