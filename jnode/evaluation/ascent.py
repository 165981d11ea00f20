"""Images of the largest loss, for what asks for more than a misclassified one."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jnode.attacks.base import Classifier, Images, loss_and_gradient, wide
from jnode.attacks.norms import project, random_start, steepest


def ascend(
    model: Classifier,
    images: Images,
    labels: Int[Array, " batch"],
    *,
    epsilon: Float[Array, ""],
    norm: str,
    steps: Int[Array, ""],
    restarts: int = 1,
    key: PRNGKeyArray,
) -> Images:
    """PGD that goes on past the first misclassified image.

    Of all iterates a misclassified one is kept before one that is not, and of two such
    the one of the larger cross-entropy. An attack may stop at the boundary; an image
    that shall fool another model too, or whose loss is compared, must go far beyond.

    **Arguments:** as `jnode.attacks.PGD` and its call.
    """
    epsilon = epsilon.astype(images.dtype)
    length = 2.5 * epsilon / steps.astype(images.dtype)

    def keep(best, x):
        losses, logits, gradient = loss_and_gradient(model, x, labels)
        wrong = jnp.argmax(logits, axis=1) != labels
        better = jnp.where(wrong == best[1], losses > best[2], wrong)
        chosen = jnp.where(wide(better), x, best[0])
        wrong, losses = (
            jnp.where(better, new, old)
            for new, old in ((wrong, best[1]), (losses, best[2]))
        )
        return (chosen, wrong, losses), gradient

    def step(_, carry):
        x, gradient, best = carry
        x = project(x + length * steepest(gradient, norm), images, epsilon, norm)
        best, gradient = keep(best, x)
        return x, gradient, best

    def restart(best, key):
        x = random_start(images, epsilon, norm, key)
        best, gradient = keep(best, x)
        *_, best = jax.lax.fori_loop(0, steps, step, (x, gradient, best))
        return best, None

    n = len(images)
    best = (images, jnp.zeros(n, bool), jnp.full(n, -jnp.inf, images.dtype))
    best, _ = jax.lax.scan(restart, best, jr.split(key, restarts))
    return best[0]
