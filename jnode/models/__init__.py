"""Classifiers: encoder, ODE block, head; by name, and as files."""

from jnode.models.classifier import Head as Head
from jnode.models.classifier import ODEClassifier as ODEClassifier
from jnode.models.config import ModelConfig as ModelConfig
from jnode.models.config import build as build
from jnode.models.encoders import AbstractEncoder as AbstractEncoder
from jnode.models.encoders import ConvEncoder as ConvEncoder
from jnode.models.encoders import IsometricEncoder as IsometricEncoder
from jnode.models.file import load as load
from jnode.models.file import save as save
from jnode.models.presets import MODELS as MODELS
