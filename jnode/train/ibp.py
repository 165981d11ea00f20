r"""Certified training in Linf: interval bound propagation.

The loss is $\kappa\,H(z) + (1 - \kappa)\,H(\bar z)$ with the cross-entropy $H$, the
logits $z$ of the image, and $\bar z_c$ an upper bound on $z_c - z_y$ over its whole
ball, by the intervals of `jnode.certify.linf`, up to rounding (Gowal et al., ICCV
2019). Intervals of a fresh model are far too wide to learn from, so the radius grows
from 0, and $\kappa$ falls from 1, while training goes on.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jnode.certify.enclosures import Arithmetic
from jnode.certify.linf import gains
from jnode.constraints import Constrained, Free
from jnode.linear import Conv
from jnode.models import ODEClassifier

WARMUP = 0.05
"""The fraction of training before the radius begins to grow."""
# Products of the small maps behind the last convolution cost little, and save a lot.
_FAST = Arithmetic(outward=False, limit=2**18)


def ramp(progress: Float[Array, " b"], share: float) -> Float[Array, " b"]:
    """The progress of the ramp: from 0, after a warm-up, to 1.

    **Arguments:** the finished fraction of training, and the fraction at which the ramp
    ends.
    """
    return jnp.clip((progress - WARMUP) / max(share - WARMUP, 1e-6), 0, 1)


def worst_entropy(
    model: ODEClassifier,
    images: Float[Array, "b h w c"],
    labels: Int[Array, " b"],
    epsilon: Float[Array, " b"],
    scale: float,
) -> tuple[Float[Array, " b"], Bool[Array, " b"]]:
    """The cross-entropy of the worst logits in each ball, and whether it is proven
    right.

    **Arguments:** a resolved model with fixed steps; images and labels; the radius of
    each ball; a factor of the logits.

    **Raises:** as `jnode.certify.linf.embedding`.
    """
    worst = gains(_by_kernels(model), images, labels, epsilon, _FAST)
    entropy = optax.softmax_cross_entropy_with_integer_labels(scale * worst, labels)
    return entropy, jnp.argmax(worst, axis=1) == labels


def _by_kernels(model: ODEClassifier) -> ODEClassifier:
    """The model with convolutions computed from their kernels.

    On CPU some are computed by frequencies, as three maps, each of which widens
    intervals by far more than the kernel.
    """

    def one(x):
        if not isinstance(x, Conv):
            return x
        return eqx.tree_at(
            lambda conv: conv.spectral, x, None, is_leaf=lambda form: form is None
        )

    return jax.tree.map(one, model, is_leaf=lambda x: isinstance(x, Conv))


def narrowed(model: ODEClassifier) -> ODEClassifier:
    r"""A fresh model whose free maps are scaled such that intervals widen little.

    Their weights get a standard deviation of $\sqrt{2\pi}/n$ for sums of $n$ terms,
    whose absolute values then add up to 2, of which relu lets half pass (Shi et al.,
    NeurIPS 2021). The usual $1/\sqrt n$ widens intervals a hundredfold each step.
    """

    def one(x):
        if not (isinstance(x, Constrained) and isinstance(x.constraint, Free)):
            return x
        taps = 1 if x.grid is None else x.weight.shape[-3] * x.weight.shape[-4]
        deviation = (2 * jnp.pi) ** 0.5 / (taps * x.weight.shape[-1])
        weight = x.weight * (deviation / jnp.std(x.weight))
        return dataclasses.replace(x, weight=weight)

    is_map = lambda x: isinstance(x, Constrained)  # noqa: E731
    return jax.tree.map(one, model, is_leaf=is_map)
