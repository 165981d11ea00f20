"""Certified bounds: what no attack can exceed."""

from jnode.certify.accuracy import certified_accuracy as certified_accuracy
from jnode.certify.accuracy import certified_radii as certified_radii
from jnode.certify.accuracy import refusal as refusal
from jnode.certify.amplification import amplification as amplification
from jnode.certify.amplification import (
    circle_contractivity_radius as circle_contractivity_radius,
)
from jnode.certify.amplification import gronwall as gronwall
from jnode.certify.amplification import log_norm_envelope as log_norm_envelope
from jnode.certify.amplification import step_amplification as step_amplification
from jnode.certify.linf import linf_certified_accuracy as linf_certified_accuracy
from jnode.certify.linf import linf_radius as linf_radius
from jnode.certify.linf import linf_robust as linf_robust
from jnode.certify.linf import proven_rounding as proven_rounding
from jnode.certify.local import local_radius as local_radius
from jnode.certify.precision import arithmetic as arithmetic
from jnode.certify.precision import assumptions as assumptions
from jnode.certify.precision import certifying as certifying
from jnode.certify.radius import radius as radius
from jnode.certify.rounding import ALLOWANCE as ALLOWANCE
from jnode.certify.search import estimate_lipschitz as estimate_lipschitz
from jnode.certify.search import lipschitz_lower_bound as lipschitz_lower_bound
from jnode.certify.smoothing import SmoothedPrediction as SmoothedPrediction
from jnode.certify.smoothing import Smoothing as Smoothing
from jnode.certify.smoothing import smooth_certify as smooth_certify
from jnode.certify.smoothing import smooth_predict as smooth_predict
