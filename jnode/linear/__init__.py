"""Linear operators that hold plain arrays, and certified bounds on their norms."""

from jnode.linear.base import AbstractLinear as AbstractLinear
from jnode.linear.base import AbstractPlain as AbstractPlain
from jnode.linear.base import LowPrecision as LowPrecision
from jnode.linear.base import Product as Product
from jnode.linear.conv import Conv as Conv
from jnode.linear.dense import Dense as Dense
from jnode.linear.gram import gram_iteration as gram_iteration
from jnode.linear.gram import spectral_norm as spectral_norm
from jnode.linear.space_to_depth import DepthToSpace as DepthToSpace
from jnode.linear.space_to_depth import SpaceToDepth as SpaceToDepth
from jnode.linear.spectral_conv import SpectralConv as SpectralConv
