"""Linear maps whose norm is known, and free ones."""

from jnode.linear.base import AbstractLinear as AbstractLinear
from jnode.linear.cayley import cayley as cayley
from jnode.linear.conv import Conv as Conv
from jnode.linear.dense import CayleyDense as CayleyDense
from jnode.linear.dense import Dense as Dense
from jnode.linear.spectral_conv import CayleyConv as CayleyConv
from jnode.linear.spectral_conv import CircularConv as CircularConv
from jnode.linear.spectral_conv import SpectralConv as SpectralConv
