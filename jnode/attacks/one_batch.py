"""One attack on one batch, and the judgement of what it found."""

import equinox as eqx
import jax.numpy as jnp

from jnode.attacks.base import NORMS, AbstractAttack
from jnode.attacks.norms import size

TOLERANCE = 1e-6  # by which rounding may take an image past its budget


@eqx.filter_jit
def predict(model, images):
    """The class given to each image of a batch; -1, no class, where a logit is not
    finite."""
    logits = model(images)
    finite = jnp.all(jnp.isfinite(logits), axis=1)
    return jnp.where(finite, jnp.argmax(logits, axis=1), -1)


@eqx.filter_jit
def perturb(attack, model, images, labels, key):
    """One attack on one batch, compiled."""
    return attack(model, images, labels, key=key)


def check_budget(attack: AbstractAttack, images, adversarial) -> None:
    """Raises `RuntimeError` for images outside [0, 1] or the attack's budget."""
    low, high = float(jnp.min(adversarial)), float(jnp.max(adversarial))
    if not (low >= 0 and high <= 1):
        raise RuntimeError(f"{attack.name} left [0, 1]: {low} to {high}.")
    if attack.norm in NORMS:
        largest = float(jnp.max(size(adversarial - images, attack.norm)))
        if not largest <= float(attack.epsilon) + TOLERANCE:
            raise RuntimeError(
                f"{attack.name} left its budget of {float(attack.epsilon)}: {largest}."
            )
