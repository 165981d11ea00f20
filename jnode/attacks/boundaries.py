"""The linearised boundaries between the label and the other classes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.attacks.base import Classifier, Images, Labels
from jnode.attacks.norms import size

Gaps = Float[Array, " batch"]


def boundary_to(
    model: Classifier, images: Images, labels: Labels, targets: Labels
) -> tuple[Images, Gaps]:
    """The gap by which the label's logit is ahead of the target's: gradient, value."""

    def gap(x):
        logits = model(x)
        rows = jnp.arange(len(x))
        gaps = logits[rows, labels] - logits[rows, targets]
        return jnp.sum(gaps), gaps

    gradient, gaps = jax.grad(gap, has_aux=True)(images)
    return jnp.where(jnp.isfinite(gradient), gradient, 0), gaps


def nearest_boundary(
    model: Classifier, images: Images, labels: Labels, norm: str
) -> tuple[Images, Gaps]:
    """As `boundary_to`, of the class whose linearised boundary is nearest."""
    logits, pull = jax.vjp(model, images)
    classes = logits.shape[1]
    true = jax.nn.one_hot(labels, classes, dtype=logits.dtype)
    gaps = jnp.sum(true * logits, axis=1, keepdims=True) - logits

    def gradient_to(other):
        gradient = pull(true - jnp.broadcast_to(other, true.shape))[0]
        return jnp.where(jnp.isfinite(gradient), gradient, 0)

    # One after another: a batch of gradients at a time.
    normals = jax.lax.map(gradient_to, jnp.eye(classes, dtype=logits.dtype)[:, None])
    dual = "l1" if norm == "linf" else "l2"
    steep = jax.vmap(lambda normal: size(normal, dual))(normals).T
    away = jnp.abs(gaps) / jnp.maximum(steep, 1e-12)
    nearest = jnp.argmin(jnp.where(true > 0, jnp.inf, away), axis=1)
    rows = jnp.arange(len(images))
    return normals[nearest, rows], gaps[rows, nearest]
