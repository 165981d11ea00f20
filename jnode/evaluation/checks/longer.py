"""Whether an attack of many more steps finds more: PGD-1000 beside PGD-20."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PRNGKeyArray

from jnode.attacks.base import cross_entropy
from jnode.attacks.one_batch import check_budget, perturb
from jnode.evaluation.transfers import Transfer

GAP = 0.02
"""The share of images that many more steps may break before there is a flag."""


@eqx.filter_jit
def _judge(model, images, labels):
    logits = model(images)
    finite = jnp.all(jnp.isfinite(logits), axis=1)
    right = finite & (jnp.argmax(logits, axis=1) == labels)
    return cross_entropy(logits, labels), right


def longer(
    model: Callable,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: float,
    norm: str,
    key: PRNGKeyArray,
    steps: tuple[int, int] = (20, 1000),
) -> dict[str, Any]:
    """Loss and accuracy under PGD with few steps and with many, on the same images.

    **Arguments:** a map from a batch of images to logits; one batch of images and
    labels; the budget and its norm; the key of the random starts; how many steps.

    **Returns:** a row for each; words, and a flag where they disagree: many steps that
    break far more say that few had not converged, and fewer that gradients mislead.
    """
    x, y = jnp.asarray(images), jnp.asarray(labels)
    rows = []
    for count in steps:
        attack = Transfer(model, "itself", epsilon, norm=norm, steps=count)
        adversarial = perturb(attack, model, x, y, key)
        check_budget(attack, x, adversarial)
        losses, right = _judge(model, adversarial, y)
        rows.append(
            {
                "steps": count,
                "loss": float(np.nan_to_num(np.mean(losses), nan=1e9, posinf=1e9)),
                "robust_accuracy": float(np.mean(right)),
            }
        )
    few, many = rows
    more = few["robust_accuracy"] - many["robust_accuracy"]
    flags = []
    if more > GAP:
        flags.append(
            f"not converged: PGD-{steps[1]} breaks {more:.1%} more images than "
            f"PGD-{steps[0]} at {norm} {epsilon:.3g}."
        )
    if more < -GAP:
        flags.append(
            f"masked gradients: PGD-{steps[1]} breaks {-more:.1%} fewer images than "
            f"PGD-{steps[0]} at {norm} {epsilon:.3g}."
        )
    says = " and ".join(
        f"PGD-{row['steps']} leaves {row['robust_accuracy']:.1%} at a mean loss of "
        f"{row['loss']:.3g}"
        for row in rows
    )
    return {
        "rows": rows,
        "norm": norm,
        "epsilon": round(float(epsilon), 7),
        "num_examples": len(x),
        "says": f"At {norm} {epsilon:.3g}, {says}, of {len(x)} images.",
        "flags": flags,
    }
