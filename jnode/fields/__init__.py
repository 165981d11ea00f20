"""Vector fields, usable as they are in `diffrax.ODETerm`."""

from jnode.fields.algebra import Composed as Composed
from jnode.fields.algebra import Congruent as Congruent
from jnode.fields.algebra import Decay as Decay
from jnode.fields.algebra import LowPrecisionField as LowPrecisionField
from jnode.fields.base import AbstractVectorField as AbstractVectorField
from jnode.fields.base import Scaled as Scaled
from jnode.fields.base import Sum as Sum
from jnode.fields.certified import Certified as Certified
from jnode.fields.gradient_flow import GradientFlowField as GradientFlowField
from jnode.fields.piecewise import PiecewiseField as PiecewiseField
from jnode.fields.skew import HamiltonianField as HamiltonianField
from jnode.fields.skew import SkewField as SkewField
from jnode.fields.two_layer import FreeField as FreeField
from jnode.fields.two_layer import OrthoField as OrthoField
