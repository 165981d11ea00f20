"""The certified L2 radius of a prediction."""

from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jnode.certify.adaptive import adaptive_radii
from jnode.certify.precision import certifying, check_certifiable
from jnode.certify.rounding import head_allowance, inner_size
from jnode.constraints import resolve
from jnode.fields.base import safe_norm

if TYPE_CHECKING:
    from jnode.models import ModelBounds, ODEClassifier

# Each float32 operation moves states by some 1e-7 of their size, and the operations
# after it amplify that like any other difference. So a logit difference counts only
# beyond this fraction of max(1, L) |features| |w_y - w_c|. The allowance is stated, not
# proven: the tests and the soundness benchmark compare with float64, and the measured
# error is far smaller.
ROUNDING = 1e-5
ALLOWANCE = {"rounding": "allowed for, stated and not proven", "relative": ROUNDING}
"""The note about rounding in every certificate that is written."""


def radius(
    model: "ODEClassifier", images: Float[Array, "batch height width channels"]
) -> Float[Array, " batch"]:
    r"""The certified L2 radius of each prediction.

    $$r = \min_{c \ne y} \frac{z_y - z_c - \delta_c}{L\,\|w_y - w_c\|}$$

    for logits $z_c = \langle w_c, \phi\rangle + b_c$ of $L$-Lipschitz features $\phi$.
    No image within this distance gets another prediction (a sharper form of Tsuzuku et
    al., NeurIPS 2018), whether or not the prediction is correct. The allowance for
    rounding is stated and not proven:

    $$\delta_c = 2\cdot 10^{-5} G (1 + s + \beta)\|w_y - w_c\| + 2\cdot 10^{-6} a_c,$$

    with $a_c = (\|w_y\| + \|w_c\|)\|\phi\| + |b_y| + |b_c|$, the largest norm $s$ of a
    state where a block ends, the size $\beta$ of the biases over a state, and the
    largest product $G$ of the constants of the last layers: $\max(1, L)$ for one block
    after an isometry.

    **Arguments:** a model, and images `[n, height, width, channels]` with pixels in [0,
    1].

    **Returns:** radii in pixel units, 0 where nothing is certified. That is everywhere
    if a part of the model is unconstrained, or if the solver is adaptive, unless it
    takes its steps from a ladder: then all paths that the ball can reach are examined
    (see `jnode.certify.paths`).

    **Raises:** `TypeError` for a model or images in another type than float32 or
    float64; `ValueError` for a model of fewer than two classes.
    """
    check_certifiable(model, images)
    return _radius(model, images)


@certifying
@eqx.filter_jit
def _radius(model, images):
    return radii(*resolve(model), images)


def radii(
    model: "ODEClassifier",
    bounds: "ModelBounds",
    images: Float[Array, "batch height width channels"],
) -> Float[Array, " batch"]:
    """`radius` for a resolved model and the bounds from the same pass."""
    if len(model.head.bias) < 2:
        raise ValueError(
            "model must tell at least 2 classes apart to have a certified radius, not "
            f"{len(model.head.bias)}."
        )
    if model.solver.ladder:
        return adaptive_radii(model, bounds, images).radii
    # Nothing is multiplied by an unknown constant, so that no NaN arises.
    known = jnp.isfinite(bounds.lipschitz)
    bounds = jax.tree.map(lambda x: jnp.where(known, x, 1), bounds)
    lipschitz = bounds.lipschitz

    def one(image):
        y, slack, gaps = margins(model, image, bounds)
        others = jnp.arange(len(gaps)) != y
        least = jnp.min(jnp.where(others, slack / gaps, jnp.inf))
        # A constant of nearly 0 would make the quotient infinite.
        positive = known & (least > 0)
        return (
            jnp.where(positive, least, 0) / jnp.maximum(lipschitz, 1e-12) * (1 - 1e-5)
        )

    return jax.vmap(one)(images)


def margins(
    model: "ODEClassifier",
    image: Float[Array, "height width channels"],
    bounds: "ModelBounds",
) -> tuple[Int[Array, ""], Float[Array, " classes"], Float[Array, " classes"]]:
    r"""The prediction $y$, each margin $z_y - z_c - \delta_c$, each $\|w_y - w_c\|$."""
    rows = model.head.rows()
    states = model.states(image)
    features = states[-1].ravel()
    logits = model.head(features)
    y = jnp.argmax(logits)
    gaps = jax.vmap(safe_norm)(rows[y][None] - rows)
    allowance = 2 * stated_rounding(model, states, bounds) * gaps
    allowance = allowance + head_allowance(model.head, safe_norm(features), y)
    return y, logits[y] - logits - allowance, gaps


def stated_rounding(
    model: "ODEClassifier",
    states: tuple[Float[Array, "..."], ...],
    bounds: "ModelBounds",
) -> Float[Array, ""]:
    """The allowance for the rounding of the features, in L2.

    **Arguments:** a resolved model, its states after each layer, and its bounds.
    """
    # Rounding is relative to the size of the intermediate states too, which is measured
    # at the end of each block: a Lipschitz bound on the image of zero would be much
    # larger.
    largest, inner = safe_norm(states[-1].ravel()), jnp.zeros(())
    for layer, state in zip(model.layers, states, strict=True):
        inner = inner + inner_size(layer, state.size)
        if not layer.affine:
            largest = jnp.maximum(largest, safe_norm(state))
    return ROUNDING * (1 + largest + inner) * growth(bounds)


def growth(bounds: "ModelBounds") -> Float[Array, ""]:
    """The factor by which an error made in some layer can have grown at the end.

    The largest product of the constants of the last k layers, over all k from 0.
    """
    dtype = bounds.lipschitz.dtype
    total, largest = jnp.ones((), dtype), jnp.maximum(1, bounds.lipschitz)
    for constant in reversed(bounds.layers):
        total = total * constant.astype(dtype)
        largest = jnp.maximum(largest, total)
    return largest
