"""TPUs that are not there: what the real programs would cost on them."""

from jnode.tpu.chips import CHIPS as CHIPS
from jnode.tpu.chips import Chip as Chip
from jnode.tpu.chips import devices as devices
from jnode.tpu.compile import compile_program as compile_program
from jnode.tpu.programs import PROGRAMS as PROGRAMS
