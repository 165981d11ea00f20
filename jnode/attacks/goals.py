"""What an attack is after: any other class than the true one, or one that is given."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jnode.attacks.losses import (
    Labels,
    Logits,
    PerSample,
    at,
    cross_entropy,
    difference_of_logits_ratio,
    margin,
    next_likely,
    prediction,
    targeted_ratio,
)


class AbstractGoal(eqx.Module):
    """When an attack has succeeded, and the losses that grow on the way there.

    `classes` are the true classes of an untargeted attack, and the targets of a
    targeted one.
    """

    classes: Int[Array, " batch"]

    @staticmethod
    @abc.abstractmethod
    def met(predictions: Any, classes: Any) -> Any:
        """Where these are the predictions wanted, as arrays; -1 is no class."""

    def reached(self, logits: Logits) -> Bool[Array, " batch"]:
        """Of which images these are the logits wanted."""
        return self.met(prediction(logits), self.classes)

    @abc.abstractmethod
    def loss(self, logits: Logits) -> PerSample:
        """The cross-entropy, with the sign with which it is to grow."""

    @abc.abstractmethod
    def ratio(self, logits: Logits) -> PerSample:
        """The difference of logits ratio (Croce & Hein, ICML 2020), likewise."""

    @abc.abstractmethod
    def margin(self, logits: Logits) -> PerSample:
        """The difference of two logits that is below 0 where the goal is reached."""

    @abc.abstractmethod
    def rival(self, logits: Logits) -> Labels:
        """The class whose logit a target's must exceed."""

    @abc.abstractmethod
    def target(self, clean: Logits, rank: Int[Array, ""]) -> Labels:
        """The class that the part of an attack with this number heads for."""


class Untargeted(AbstractGoal):
    """Any prediction but the true class; none, as logits are not finite, counts too."""

    @staticmethod
    def met(predictions, classes):
        return predictions != classes

    def loss(self, logits):
        return cross_entropy(logits, self.classes)

    def ratio(self, logits):
        return difference_of_logits_ratio(logits, self.classes)

    def margin(self, logits):
        return margin(logits, self.classes)

    def rival(self, logits):
        return self.classes

    def target(self, clean, rank):
        return next_likely(clean, rank)


class Targeted(AbstractGoal):
    """The target as prediction. All parts of an attack head for it."""

    @staticmethod
    def met(predictions, classes):
        return predictions == classes

    def loss(self, logits):
        return -cross_entropy(logits, self.classes)

    def ratio(self, logits):
        return targeted_ratio(logits, self.rival(logits), self.classes)

    def margin(self, logits):
        return at(logits, self.rival(logits)) - at(logits, self.classes)

    def rival(self, logits):
        own = jnp.arange(logits.shape[1])[None] == self.classes[:, None]
        found = jnp.argmax(jnp.where(own, -jnp.inf, logits), axis=1)
        return found.astype(self.classes.dtype)

    def target(self, clean, rank):
        return self.classes
