"""Certified robustness in Linf by intervals, for any model with fixed steps.

`enclosures.py` and `interpreter.py` enclose what a model computes for all images of a
ball, $|x - x_0| \\le \\epsilon$ in each pixel and pixels in [0, 1], rounding included.
No Lipschitz constant is needed, so this certifies free fields too, if they were trained
for it (interval bound propagation: Gowal et al., ICCV 2019; for ODEs: Zeqiri et al.,
ICML 2023). In other models, intervals become wide long before predictions change: each
map of an orthogonal field widens them by a factor of up to the square root of its size.
"""

from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jnode._batches import (
    check_images,
    check_labels,
    padded_batches,
)
from jnode.certify.enclosures import Arithmetic, Enclosure, spread
from jnode.certify.interpreter import enclose
from jnode.certify.precision import certifying, check_certifiable
from jnode.certify.rounding import stated_rounding
from jnode.constraints import plain, resolve

if TYPE_CHECKING:
    from jnode.models import ODEClassifier

Images = Float[Array, "batch height width channels"]
HALVINGS = 12
"""Steps of bisection for the largest certified radius."""


def ball(images: Images, epsilon: ArrayLike, arithmetic: Arithmetic) -> Enclosure:
    """The images with pixels in [0, 1] that are within `epsilon` of these, and these
    themselves, wherever their pixels lie."""
    epsilon = jnp.broadcast_to(jnp.asarray(epsilon, images.dtype), (len(images),))
    epsilon = epsilon.reshape(-1, 1, 1, 1)
    low, high = jnp.maximum(images - epsilon, 0), jnp.minimum(images + epsilon, 1)
    low, high = jnp.minimum(low, images), jnp.maximum(high, images)
    centre = low / 2 + high / 2
    error = jnp.maximum(high - centre, centre - low)
    # At 0 it is the image itself, without rounding.
    slack = arithmetic.slack(1, images)
    error = error * (1 + slack) + slack * jnp.where(epsilon > 0, 1 + epsilon, 0)
    return arithmetic.opened(Enclosure(centre, error))


def embedding(
    model: "ODEClassifier", images: Images, epsilon: ArrayLike, arithmetic: Arithmetic
) -> Enclosure:
    """An enclosure of the features of each image's ball.

    **Arguments:** a resolved model with a fixed-step solver; the images; the radius, a
    number or one for each image; the arithmetic.

    **Raises:** `ValueError` for an adaptive solver and for another adjoint than
    "direct", and as `jnode.certify.interpreter.enclose`.
    """
    if model.solver.adaptive:
        raise ValueError(
            f"solver must take fixed steps to be enclosed, and {model.solver} chooses "
            "its steps from its input: give steps, or freeze the model."
        )
    if model.solver.adjoint != "direct":
        raise ValueError(
            "adjoint must be 'direct' to be enclosed, the loop of this package, not "
            f"{model.solver.adjoint!r}."
        )
    return enclose(arithmetic, model.embed, ball(images, epsilon, arithmetic))


def worst_gains(
    model: "ODEClassifier",
    features: Enclosure,
    labels: Int[Array, " batch"],
    arithmetic: Arithmetic,
) -> Float[Array, "batch classes"]:
    """For each class an upper bound on $z_c - z_y$ over all enclosed features.

    It bounds the difference itself, so the common part of both logits cancels. It is 0
    for the class $y$.
    """
    whole = Arithmetic(arithmetic.outward, max(arithmetic.limit, 2**24))
    logits = enclose(whole, model.head, whole.opened(features))
    logits = spread(logits, len(labels))
    pick = jax.vmap(lambda row, y: row - row[y])
    gain = pick(logits.centre, labels)
    error = jnp.zeros_like(gain)
    if logits.error is not None:
        error = jax.vmap(lambda row, y: row + row[y])(logits.error, labels)
    for _, radius, matrix in logits.terms:
        assert matrix is not None, "the head is a matrix"
        gaps = jnp.abs(matrix[:, :, None] - matrix[:, None])
        widths = jnp.tensordot(radius, gaps, 1, precision="highest")
        share = 1 + whole.slack(len(matrix), widths)
        error = error + share * jax.vmap(lambda w, y: w[:, y])(widths, labels)
    slack = whole.slack(8, gain)
    worst = gain + error * (1 + slack) + slack * jnp.abs(gain)
    return jnp.where(jnp.arange(worst.shape[1])[None] == labels[:, None], 0, worst)


def gains(
    model: "ODEClassifier",
    images: Images,
    labels: Int[Array, " batch"],
    epsilon: ArrayLike,
    arithmetic: Arithmetic | None = None,
) -> Float[Array, "batch classes"]:
    """`worst_gains` over each image's ball, for a resolved model."""
    arithmetic = Arithmetic() if arithmetic is None else arithmetic
    found = embedding(model, images, epsilon, arithmetic)
    return worst_gains(model, found, labels, arithmetic)


def linf_robust(
    model: "ODEClassifier",
    images: Images,
    labels: Int[Array, " batch"],
    epsilon: ArrayLike,
) -> Bool[Array, " batch"]:
    r"""Whether all images in each image's Linf ball provably get its label.

    The proof is for the model as it is computed in its own precision, and for every
    image $x'$ with $|x' - x| \\le \\epsilon$ in each pixel and pixels in [0, 1]. The
    allowances for rounding are proven (see `jnode.certify.enclosures`), given the
    measured accuracy of elementary functions.

    **Arguments:** a model with fixed steps; images with pixels in [0, 1]; the labels to
    prove, [n] (the predictions or the true classes); the radius, a number or one for
    each image.

    **Raises:** `TypeError` for a model or images in another type than float32 or
    float64, and for labels that are no integers; `ValueError` for pixels outside [0, 1]
    and labels out of range (neither is seen of traced arrays), for labels that are not
    as many, a negative radius, an adaptive solver, another adjoint than "direct", and
    an operation without a rule, which it names.
    """
    _check(model, images, labels)
    if not isinstance(epsilon, Tracer) and not np.all(np.asarray(epsilon) >= 0):
        raise ValueError(f"epsilon must be at least 0, not {epsilon}.")
    return _robust(model, images, labels, jnp.asarray(epsilon, images.dtype))


def _check(model, images, labels):
    """Raises the errors of `linf_robust` for images and labels that are known."""
    check_certifiable(model, images)
    if isinstance(images, Tracer):
        return
    check_images(images, shape=model.image_shape)
    if not isinstance(labels, Tracer):
        check_labels(labels, len(model.head.bias), images)


@certifying
@eqx.filter_jit
def _robust(model, images, labels, epsilon):
    return _proven(plain(model), images, labels, epsilon)


def _proven(model, images, labels, epsilon):
    worst = gains(model, images, labels, epsilon)
    others = jnp.arange(worst.shape[1])[None] != labels[:, None]
    return jnp.all((worst < 0) | ~others, axis=1)


def linf_radius(
    model: "ODEClassifier",
    images: Images,
    labels: Int[Array, " batch"],
    largest: float = 0.5,
) -> Float[Array, " batch"]:
    """The largest Linf radius up to `largest` that bisection certifies for each image.

    Each radius is proven by `linf_robust`; -1 means that not even the image itself is
    proven to get its label. Arguments are those of `linf_robust`.

    **Returns:** radii [n].

    **Raises:** as `linf_robust`.
    """
    _check(model, images, labels)
    if not 0 < largest <= 1:
        raise ValueError(f"largest must be positive and at most 1, not {largest}.")
    return _radius(model, images, labels, jnp.asarray(largest, images.dtype))


@certifying
@eqx.filter_jit
def _radius(model, images, labels, largest):
    model = plain(model)

    def halve(bounds, k):
        low, high = bounds
        # First both ends, then bisection.
        trial = jnp.where(k == 0, 0.0, jnp.where(k == 1, high, (low + high) / 2))
        # Where the image itself is not proven, the trials that follow are no radii.
        proven = _proven(model, images, labels, trial) & ((k == 0) | (low >= 0))
        low = jnp.where(proven, trial, low)
        return (low, jnp.where(proven | (k == 0), high, trial)), None

    ends = (jnp.full(len(images), -1.0, images.dtype), jnp.full(len(images), largest))
    return jax.lax.scan(halve, ends, jnp.arange(HALVINGS + 2))[0][0]


def linf_certified_accuracy(
    model: "ODEClassifier",
    images: ArrayLike,
    labels: ArrayLike,
    epsilons: tuple[float, ...],
    *,
    batch_size: int = 500,
) -> list[dict]:
    """Certified robust accuracy in Linf balls, as rows for JSON.

    **Arguments:** a model; images [n, height, width, channels] with pixels in [0, 1];
    their classes [n]; the Linf radii; the batch size.

    **Raises:** `TypeError` and `ValueError` for bad images or labels, and as
    `linf_robust`.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    check_images(images, shape=model.image_shape)
    check_labels(labels, len(model.head.bias))
    if images.dtype != np.float64:
        images = images.astype(np.float32)
    rows, size = [], min(batch_size, len(labels))
    for epsilon in epsilons:
        proven = [
            np.asarray(linf_robust(model, jnp.asarray(x), jnp.asarray(y), epsilon))[
                mask
            ]
            for _, (x, y), mask in padded_batches((images, labels), size)
        ]
        share = float(np.mean(np.concatenate(proven)))
        row = {"norm": "linf", "radius": float(epsilon), "certified_accuracy": share}
        rows.append({**row, "method": "intervals"})
    return rows


@certifying
@eqx.filter_jit
def proven_rounding(
    model: "ODEClassifier", images: Images
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Bounds on the rounding of each image's features, in L2: proven, and stated.

    The first comes from the enclosure of a ball of radius 0, which contains both the
    computed features and those of exact arithmetic. It holds for these images, not for
    others nearby. The second is the allowance of `jnode.certify.radius`; `inf` if a
    part of the model has no Lipschitz constant.

    **Arguments:** a model with fixed steps, and images with pixels in [0, 1].

    **Raises:** as `embedding`.
    """
    model, bounds = resolve(model)
    arithmetic = Arithmetic()
    found = embedding(model, images, 0.0, arithmetic)
    widths = 2 * arithmetic.reach(found)
    proven = jnp.sqrt(jnp.sum(widths**2, axis=1))
    slack = arithmetic.slack(widths.shape[1], widths)
    one = lambda x: stated_rounding(model, x, model.states(x), bounds)  # noqa: E731
    stated = jax.vmap(one)(images)
    return proven * (1 + slack), stated


@certifying
@eqx.filter_jit
def widths(
    model: "ODEClassifier", images: Images, epsilon: ArrayLike
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """The widest interval of each image's features, and the largest of these features.

    Arguments and errors are those of `embedding`.
    """
    model, arithmetic = plain(model), Arithmetic()
    found = embedding(model, images, epsilon, arithmetic)
    largest = lambda x: jnp.max(jnp.abs(x), axis=1)  # noqa: E731
    # Not the centres, which are far from the features if intervals are wide.
    features = jax.vmap(model.embed)(images).reshape(len(images), -1)
    return largest(2 * arithmetic.reach(found)), largest(features)
