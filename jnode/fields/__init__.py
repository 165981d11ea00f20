"""Vector fields, usable as they are in `diffrax.ODETerm`."""

from jnode.fields.base import AbstractVectorField as AbstractVectorField
from jnode.fields.free import FreeField as FreeField
from jnode.fields.gradient_flow import GradientFlowField as GradientFlowField
from jnode.fields.ortho import OrthoField as OrthoField
