"""Classifiers: encoder, ODE block, head."""

from jnode.models.classifier import Head as Head
from jnode.models.classifier import ODEClassifier as ODEClassifier
from jnode.models.config import ModelConfig as ModelConfig
from jnode.models.config import build as build
from jnode.models.encoders import AbstractEncoder as AbstractEncoder
from jnode.models.encoders import ConvEncoder as ConvEncoder
from jnode.models.encoders import IsometricEncoder as IsometricEncoder
