"""The certified L2 radius of a prediction."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

if TYPE_CHECKING:
    from jnode.models import ODEClassifier

# Float32 arithmetic moves states by some 1e-7 of their size an operation, and what
# follows stretches that like any other difference; a logit difference is taken for
# certain only beyond this share of max(1, L) |features| |w_y - w_c|. The tests and the
# soundness benchmark measure the real error against float64: it stays far below.
ROUNDING = 1e-5


def radius(
    model: "ODEClassifier", images: Float[Array, "batch height width channels"]
) -> Float[Array, " batch"]:
    r"""The certified L2 radius of each prediction.

    $r = \min_{c \ne y} (z_y - z_c - \delta_c) / (L\,\|w_y - w_c\|)$ for logits
    $z_c = \langle w_c, \phi\rangle + b_c$ of $L$-Lipschitz features $\phi$, with the
    rounding allowance $\delta_c = 2\cdot 10^{-5}\max(1, L)(1 + \|\phi\|)\|w_y -
    w_c\|$: no image within this distance gets another prediction (a sharper form of
    Tsuzuku et al., NeurIPS 2018). It says nothing of whether the prediction is right.

    **Arguments:** a model, and images with pixels in [0, 1].

    **Returns:** radii in pixel units, 0 where nothing is certified: everywhere, if the
    solver is adaptive or a part of the model is unconstrained.
    """
    lipschitz = model.lipschitz()

    def one(image):
        y, slack, gaps = margins(model, image, lipschitz)
        ratios = slack / jnp.maximum(gaps, 1e-12)
        ratios = jnp.where(jnp.arange(len(gaps)) == y, jnp.inf, ratios)
        return jnp.maximum(jnp.min(ratios), 0.0) / lipschitz * (1 - 1e-5)

    return jax.vmap(one)(images)


def margins(
    model: "ODEClassifier",
    image: Float[Array, "height width channels"],
    lipschitz: Float[Array, ""],
) -> tuple[Int[Array, ""], Float[Array, " classes"], Float[Array, " classes"]]:
    r"""The prediction $y$, each margin $z_y - z_c - \delta_c$, each $\|w_y - w_c\|$."""
    rows = model.head.rows()
    features = model.embed(image)
    logits = model.head(features)
    y = jnp.argmax(logits)
    gaps = jnp.linalg.norm(rows[y][None] - rows, axis=1)
    # The size that rounding is relative to is that of the states on the way too: a
    # Lipschitz bound on where zero goes would be larger than |features| needs.
    size = (1 + jnp.linalg.norm(features)) * jnp.maximum(1, lipschitz)
    allowance = 2 * ROUNDING * size * gaps
    return y, logits[y] - logits - allowance, gaps
