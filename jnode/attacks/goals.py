"""The goals of attacks: untargeted, any class but the true one; or targeted."""

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
    """The condition of an attack's success, and losses that increase towards it.

    `classes` are the true classes of an untargeted attack, and the targets of a
    targeted one.
    """

    classes: Int[Array, " batch"]

    @staticmethod
    @abc.abstractmethod
    def met(predictions: Any, classes: Any) -> Any:
        """Where predictions (-1 for none) reach the goal, as an array."""

    def reached(self, logits: Logits) -> Bool[Array, " batch"]:
        """Whether the logits of each image reach the goal."""
        return self.met(prediction(logits), self.classes)

    @abc.abstractmethod
    def loss(self, logits: Logits) -> PerSample:
        """The cross-entropy, with the sign for which the attack maximises it."""

    @abc.abstractmethod
    def ratio(self, logits: Logits) -> PerSample:
        """The difference of logits ratio (Croce & Hein, ICML 2020), to be maximised."""

    @abc.abstractmethod
    def margin(self, logits: Logits) -> PerSample:
        """The difference of two logits, which is negative if the goal is reached."""

    @abc.abstractmethod
    def rival(self, logits: Logits) -> Labels:
        """The class whose logit a target's must exceed."""

    @abc.abstractmethod
    def target(self, clean: Logits, rank: Int[Array, ""]) -> Labels:
        """The class towards which an attack's part of this number moves."""


class Untargeted(AbstractGoal):
    """Any prediction but the true class, including none (logits that are not
    finite)."""

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
    """The target as the prediction, in all parts of an attack."""

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
