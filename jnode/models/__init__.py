"""Classifiers: layers in sequence and a head; by name, and as files."""

from jnode.models.classifier import Head as Head
from jnode.models.classifier import ModelBounds as ModelBounds
from jnode.models.classifier import ODEClassifier as ODEClassifier
from jnode.models.classifier import step_lengths as step_lengths
from jnode.models.config import ModelConfig as ModelConfig
from jnode.models.config import build as build
from jnode.models.file import load as load
from jnode.models.file import save as save
from jnode.models.layers import AbstractLayer as AbstractLayer
from jnode.models.layers import ConvEncoder as ConvEncoder
from jnode.models.layers import Flatten as Flatten
from jnode.models.layers import Lift as Lift
from jnode.models.layers import Linear as Linear
from jnode.models.layers import ODEBlock as ODEBlock
from jnode.models.layers import PositionBias as PositionBias
from jnode.models.presets import MODELS as MODELS
from jnode.models.shipped import card as card
from jnode.models.shipped import pretrained as pretrained
