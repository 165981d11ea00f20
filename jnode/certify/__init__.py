"""Certified bounds: what no attack can exceed."""

from jnode.certify.accuracy import certified_accuracy as certified_accuracy
from jnode.certify.accuracy import certified_radii as certified_radii
from jnode.certify.accuracy import refusal as refusal
from jnode.certify.amplification import amplification as amplification
from jnode.certify.amplification import (
    circle_contractivity_radius as circle_contractivity_radius,
)
from jnode.certify.amplification import step_amplification as step_amplification
from jnode.certify.gronwall import gronwall as gronwall
from jnode.certify.gronwall import log_norm_envelope as log_norm_envelope
from jnode.certify.radius import radius as radius
