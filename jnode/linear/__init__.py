"""Linear maps whose norm is known, and free ones."""

from jnode.linear.base import AbstractLinear as AbstractLinear
from jnode.linear.cayley import cayley as cayley
from jnode.linear.constraints import CONSTRAINTS as CONSTRAINTS
from jnode.linear.constraints import RescaledConv as RescaledConv
from jnode.linear.constraints import RescaledDense as RescaledDense
from jnode.linear.constraints import constrained as constrained
from jnode.linear.conv import Conv as Conv
from jnode.linear.dense import CayleyDense as CayleyDense
from jnode.linear.dense import Dense as Dense
from jnode.linear.gram import gram_iteration as gram_iteration
from jnode.linear.gram import spectral_norm as spectral_norm
from jnode.linear.newton_schulz import NewtonSchulzConv as NewtonSchulzConv
from jnode.linear.newton_schulz import NewtonSchulzDense as NewtonSchulzDense
from jnode.linear.resolve import measured as measured
from jnode.linear.resolve import plain as plain
from jnode.linear.row_sum import AOLConv as AOLConv
from jnode.linear.row_sum import AOLDense as AOLDense
from jnode.linear.row_sum import SLLConv as SLLConv
from jnode.linear.row_sum import SLLDense as SLLDense
from jnode.linear.space_to_depth import Chain as Chain
from jnode.linear.space_to_depth import SpaceToDepth as SpaceToDepth
from jnode.linear.spectral_conv import CayleyConv as CayleyConv
from jnode.linear.spectral_conv import CircularConv as CircularConv
from jnode.linear.spectral_conv import SpectralConv as SpectralConv
