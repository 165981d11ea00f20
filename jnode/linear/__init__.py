"""Linear operators that hold plain arrays, and certified bounds on their norms."""

from jnode.linear.conv import Conv as Conv
from jnode.linear.conv import convolve as convolve
from jnode.linear.conv import forward_mode as forward_mode
from jnode.linear.gram import gram_iteration as gram_iteration
from jnode.linear.gram import spectral_norm as spectral_norm
from jnode.linear.operators import AbstractLinear as AbstractLinear
from jnode.linear.operators import AbstractPlain as AbstractPlain
from jnode.linear.operators import Dense as Dense
from jnode.linear.operators import DepthToSpace as DepthToSpace
from jnode.linear.operators import LowPrecision as LowPrecision
from jnode.linear.operators import Product as Product
from jnode.linear.operators import SpaceToDepth as SpaceToDepth
from jnode.linear.spectral_conv import SpectralConv as SpectralConv
