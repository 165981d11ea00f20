"""The certified L2 radius of a prediction."""

from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jnode.certify.adaptive import adaptive_radii
from jnode.certify.precision import certifying, check_certifiable
from jnode.certify.rounding import head_allowance, stated_rounding
from jnode.constraints import resolve
from jnode.fields.base import safe_norm

if TYPE_CHECKING:
    from jnode.models import ModelBounds, ODEClassifier


def radius(
    model: "ODEClassifier", images: Float[Array, "batch height width channels"]
) -> Float[Array, " batch"]:
    r"""The certified L2 radius of each prediction.

    $$r = \min_{c \ne y} \frac{z_y - z_c - \delta_c}{L\,\|w_y - w_c\|}$$

    for logits $z_c = \langle w_c, \phi\rangle + b_c$ of $L$-Lipschitz features $\phi$.
    No image within this distance gets another prediction (a sharper form of Tsuzuku et
    al., NeurIPS 2018), whether or not the prediction is correct. The allowance for
    rounding is stated and not proven:

    $$\delta_c = 2\cdot 10^{-5} \kappa G (1 + s + \beta)\|w_y - w_c\| + \max(2\cdot
    10^{-6}, 2^{-27} n)\, a_c,$$

    with $a_c = (\|w_y\| + \|w_c\|)\|\phi\| + |b_y| + |b_c|$ and the number $n$ of
    features; the largest norm $s$ of the image and of a state after a layer; the size
    $\beta$ of the biases over a state, times what they count in a step; the largest
    product $G$ of the constants of the last steps and layers: $\max(1, L)$ for equal
    steps after an isometry; and $\kappa = 1$ up to 100 evaluations of the field and
    8,192 entries in a row of a matrix (see `jnode.certify.rounding`).

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
    allowance = 2 * stated_rounding(model, image, states, bounds) * gaps
    allowance = allowance + head_allowance(model.head, safe_norm(features), y)
    return y, logits[y] - logits - allowance, gaps
