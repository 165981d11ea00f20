"""The fast gradient sign method (Goodfellow et al., ICLR 2015)."""

from typing import ClassVar

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.attacks.base import (
    AbstractAttack,
    Classifier,
    Images,
    Labels,
    Logits,
    check_budget,
    loss_and_gradient,
)
from jnode.attacks.norms import project, steepest


class FGSM(AbstractAttack):
    """One steepest step of length `epsilon`, from the image itself."""

    name: ClassVar[str] = "fgsm"
    epsilon: Float[Array, ""]
    norm: str = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    restarts: int = eqx.field(static=True)

    def __init__(self, epsilon: float, *, norm: str = "linf"):
        """**Arguments:** the budget in pixel units, and its norm: "linf" or "l2"."""
        self.epsilon = check_budget(epsilon, norm)
        self.norm, self.steps, self.restarts = norm, 1, 1

    def evaluations(self) -> tuple[int, int]:
        return 1, 1

    def search(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        clean: Logits,
        *,
        key: PRNGKeyArray,
    ) -> Images:
        _, _, gradient = loss_and_gradient(model, images, labels, key=key)
        moved = images + self.epsilon * steepest(gradient, self.norm)
        return project(moved, images, self.epsilon, self.norm)
