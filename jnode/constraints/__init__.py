"""Constraints that keep a linear map's norm at 1, and maps held through them."""

from jnode.constraints.aol import AOL as AOL
from jnode.constraints.base import AbstractConstraint as AbstractConstraint
from jnode.constraints.base import Free as Free
from jnode.constraints.cayley import Cayley as Cayley
from jnode.constraints.newton_schulz import NewtonSchulz as NewtonSchulz
from jnode.constraints.resolve import CONSTRAINTS as CONSTRAINTS
from jnode.constraints.resolve import Constrained as Constrained
from jnode.constraints.resolve import constrained as constrained
from jnode.constraints.resolve import measured as measured
from jnode.constraints.resolve import plain as plain
from jnode.constraints.resolve import resolve as resolve
from jnode.constraints.sll import SLL as SLL
from jnode.constraints.spectral_rescale import SpectralRescale as SpectralRescale
from jnode.constraints.vanilla import BoundedConv2d as BoundedConv2d
from jnode.constraints.vanilla import BoundedLinear as BoundedLinear
from jnode.constraints.vanilla import vanilla_export as vanilla_export
