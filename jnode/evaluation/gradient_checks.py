"""Checks of a model's outputs and gradients, on which attacks depend."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from jnode._batches import padded_batches
from jnode.attacks import Outcome, Untargeted
from jnode.attacks.loop import over_devices
from jnode.attacks.losses import loss_and_gradient, margin
from jnode.models.batched import batched
from jnode.sharding import gather, scatter, shareable
from jnode.solvers import Solver

if TYPE_CHECKING:
    from jnode.models import ODEClassifier


ZERO_GRADIENTS = 0.01
"""The fraction of images without a gradient above which there is a flag."""
LEAST_CLASSES = 4
"""The targeted loss needs at least 4 classes, and the DLR loss 3."""
NOISE = 1e-5
"""How much two evaluations of logits may differ, relative to the largest."""


def outputs(
    model: Callable, outcome: Outcome, batch_size: int, mesh: Mesh | None = None
) -> dict[str, Any]:
    """Flags random outputs, zero gradients, probabilities in place of logits, too few
    classes (Croce et al., RobustBench, 2021; the flags of AutoAttack), and logits that
    are not finite.

    **Arguments:** a map from a batch of images to logits; the outcome of attacks, whose
    clean logits are compared with those that are computed with the gradient (by another
    program, so that a model that draws its noise in Python differs there); the batch
    size; the devices over which to shard batches.

    **Returns:** fractions of the images, the number of classes, a summary and flags.
    """
    logits = outcome.logits
    n, classes = logits.shape
    finite = np.all(np.isfinite(logits), axis=1)
    differ, flat = _evaluated_again(model, outcome, batch_size, mesh)
    inside = np.all((logits >= 0) & (logits <= 1), axis=1)
    random, vanishing, not_finite = (
        float(np.sum(mask)) / max(n, 1) for mask in (differ, flat & finite, ~finite)
    )
    sums = np.abs(np.sum(logits, axis=1) - 1) < 1e-4
    softmax = n > 0 and bool(np.all(inside & sums))
    return {
        "random": random,
        "zero_gradients": vanishing,
        "softmax": softmax,
        "non_finite": not_finite,
        "classes": classes,
        "num_examples": n,
        "summary": f"Of {n} clean images, {random:.1%} were given other logits when "
        f"asked again, {vanishing:.1%} have no gradient, {not_finite:.1%} have logits "
        "that are not finite; the outputs "
        f"{'are' if softmax else 'are not'} probabilities; "
        f"{classes} classes.",
        "flags": _flags(random, vanishing, softmax, not_finite, classes),
    }


def _evaluated_again(
    model, outcome, batch_size, mesh
) -> tuple[Bool[np.ndarray, " n"], ...]:
    """Which images get other logits this time, and which have a gradient of 0."""
    if len(outcome.labels) == 0:
        return np.zeros(0, bool), np.zeros(0, bool)
    model = over_devices(model, mesh)
    size = min(batch_size, shareable(len(outcome.labels), mesh))
    differ, flat = [], []
    arrays = outcome.images, outcome.labels, outcome.logits
    for _, (x, y, logits), mask in padded_batches(arrays, size):
        again, zero = (
            gather(found)
            for found in _logits_and_gradient(model, *scatter((x, y), mesh))
        )
        with np.errstate(invalid="ignore"):
            difference = np.abs(logits - again)
        scale = np.max(np.abs(logits), where=np.isfinite(logits), initial=1.0)
        # NaN equals NaN here, since NaNs are counted separately.
        other = np.max(np.nan_to_num(difference, posinf=np.inf), axis=1)
        differ.append((other > NOISE * scale)[mask])
        flat.append(zero[mask])
    return np.concatenate(differ), np.concatenate(flat)


@eqx.filter_jit
def _logits_and_gradient(model, images, labels):
    _, logits, gradient = loss_and_gradient(model, images, Untargeted(labels).loss)
    return logits, jnp.all(gradient == 0, axis=(1, 2, 3))


def _flags(random, vanishing, softmax, not_finite, classes) -> list[str]:
    flags = []
    if random > 0:
        flags.append(
            f"random output: two evaluations of the same image differ at "
            f"{random:.1%} of the images; attack the expectation over the noise."
        )
    if vanishing > ZERO_GRADIENTS:
        flags.append(
            f"zero gradients: the loss has none at {vanishing:.1%} of the images, "
            "so attacks that follow it are blind there."
        )
    if softmax:
        flags.append(
            "softmax outputs: the rows are probabilities and not logits, whose "
            "losses go flat; leave the softmax out."
        )
    if not_finite > 0:
        flags.append(
            f"non-finite logits: at {not_finite:.1%} of the images; they count as "
            "misclassified."
        )
    if classes < LEAST_CLASSES:
        flags.append(
            f"too few classes: {classes}, so targeted losses (at least 4) "
            "and the DLR loss (at least 3) cannot be had."
        )
    return flags


def adjoint(solver: Solver) -> dict[str, Any]:
    """Flags a continuous adjoint (optimise-then-discretise)."""
    continuous = solver.adjoint == "backsolve"
    flags = []
    if continuous:
        flags.append(
            "continuous adjoint: gradients come from the adjoint equations, solved "
            "backwards, and are not those of the evaluated solve; evaluate with the "
            "adjoint direct."
        )
    how = {
        True: "The solver's adjoint is continuous: what attacks follow is the gradient "
        "of the ideal flow, solved anew.",
        False: "The numerical solve itself is differentiated, step by step"
        + (
            "; the sizes of its adaptive steps count as constants."
            if solver.adaptive
            else "."
        ),
    }
    return {
        "adjoint": solver.adjoint,
        "continuous": continuous,
        "adaptive": solver.adaptive,
        "summary": how[continuous],
        "flags": flags,
    }


LARGE = 0.1
"""The median relative discrepancy above which there is a flag."""
SHATTERED = 0.5
"""The same at the largest step, an L2 distance of 0.1, alone."""
STEPS64, STEPS32 = (1e-6, 1e-4, 1e-2, 1e-1), (1e-2, 3e-2, 1e-1)
DIRECTIONS = 8


def gradient(
    model: Callable,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    samples: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Compares the margin's gradient with central differences of its value.

    $g$ is the gradient of $z_y - \max_{i \ne y} z_i$ that reverse mode gives, in the
    precision of the evaluation; the differences $(m(x + hd) - m(x - hd)) / 2h$ are
    taken of the same solve in float64, along $g$ and along random directions $d$ of
    length 1, for several steps $h$. The discrepancy estimates $\|g - \nabla m\| /
    \|\nabla m\|$: from the random directions, as the mean of squares along them
    estimates a squared norm, or from the direction $g$ if that gives more. For each
    sample the step with the best agreement counts.

    The gradient of an adaptive solve treats the steps that the solve took as constants
    (Diffrax stops gradients at step sizes), and the map jumps between accepting and
    rejecting a step. So the map has a fine structure of the size of the solver's error,
    which the gradient does not contain: small $h$ resolve it even if the tolerance is
    tight, and large $h$ do so only if it is loose. Therefore the discrepancy at each
    $h$ is returned too.

    **Arguments:** a map from a batch of images to logits; images [n, height, width,
    channels] and labels [n], of which the first `samples` are used; the seed of the
    directions.

    **Returns:** the discrepancy of each sample, their median and largest, the median at
    each step, the precision, the noise level of the differences (the relative rounding
    error at the second step), a summary and flags.
    """
    x = jnp.asarray(images)[:samples]
    y = jnp.asarray(labels)[:samples]
    found = _discrepancies(model, x, y, jr.key(seed))
    best = np.min(found.relative, axis=0)
    median, largest = float(np.median(best)), float(np.max(best))
    at_step = {
        f"{h:g}": float(np.median(row))
        for h, row in zip(found.steps, found.relative, strict=True)
    }
    longest, far = [*at_step.items()][-1]
    summary = (
        f"The attacks' gradient differs from central differences of the evaluated "
        f"model in {found.precision} by {_percent(median)} (median of {len(x)} images; "
        f"at most {_percent(largest)}), and by {_percent(far)} over an L2 distance of "
        f"{longest}."
    )
    return {
        "discrepancies": [_short(r) for r in best],
        "median": _short(median),
        "largest": _short(largest),
        "median_at_step": {h: _short(r) for h, r in at_step.items()},
        "precision": found.precision,
        "noise": _short(found.noise),
        "summary": summary,
        "flags": _gradient_flags(median, far, longest, len(x)),
    }


def _gradient_flags(median: float, far: float, longest: str, n: int) -> list[str]:
    if not median <= LARGE:
        return [
            f"wrong gradient: it differs by {median:.1%} (median of {n} images) "
            "from finite differences of the evaluated solve at every scale, so attacks "
            "that follow it go astray."
        ]
    if not far <= SHATTERED:
        return [
            f"shattered gradients: over an L2 distance of {longest} the model "
            f"changes otherwise than its gradient says, by {far:.0%} of it, so attacks "
            "that follow it go astray."
        ]
    return []


class _Discrepancies(NamedTuple):
    """Relative discrepancies, by step and by sample; and the differences' noise."""

    relative: Float[np.ndarray, "steps samples"]
    steps: tuple[float, ...]
    precision: str
    noise: float


def _discrepancies(model, x, y, key) -> _Discrepancies:
    g = np.asarray(_gradient(model, x, y), np.float64)
    size = np.sqrt(np.sum(g**2, axis=(1, 2, 3), keepdims=True))
    random = np.asarray(jr.normal(key, (DIRECTIONS, *x.shape)), np.float64)
    random /= np.sqrt(np.sum(random**2, axis=(2, 3, 4), keepdims=True))
    directions = np.concatenate([(g / np.maximum(size, 1e-300))[None], random])
    slopes = np.sum(g * directions, axis=(2, 3, 4))
    quotients, steps, precision, noise = _quotients(model, x, y, directions)
    along, random = np.split(quotients - slopes, [1], axis=1)
    n = x[0].size
    norm_of = lambda e: np.sqrt(n * np.mean(e**2, axis=1))  # noqa: E731
    error = np.maximum(np.abs(along[:, 0]), norm_of(random))
    truth = np.maximum(size.ravel(), norm_of(quotients[:, 1:]))
    relative = np.where(error == 0, 0.0, error / np.maximum(truth, 1e-300))
    noise = float(np.median(noise * np.sqrt(n) / np.maximum(size, 1e-300)))
    return _Discrepancies(relative, steps, precision, noise)


def held_steps(
    model: "ODEClassifier", images: ArrayLike, labels: ArrayLike, *, samples: int = 2
) -> float:
    """How far an adaptive model's gradient is from that of its recorded steps.

    **Arguments:** the model; images [n, height, width, channels] and labels [n], of
    which the first `samples` are used, each with a compilation of its own.

    **Returns:** the largest relative difference from the gradient of the fixed-step
    model that takes the same steps (`ODEClassifier.freeze`).
    """
    x = jnp.asarray(images)[:samples]
    y = jnp.asarray(labels)[:samples]
    ours = np.asarray(_gradient(batched(model), x, y), np.float64)
    found = []
    for i in range(len(x)):
        frozen = batched(model.freeze(x[i]))
        same = np.asarray(_gradient(frozen, x[i : i + 1], y[i : i + 1])[0], np.float64)
        found.append(np.linalg.norm(ours[i] - same) / max(np.linalg.norm(same), 1e-300))
    return _short(max(found))


@eqx.filter_jit
def _gradient(model, x, y):
    return jax.grad(lambda x: jnp.sum(margin(model(x), y)))(x)


@eqx.filter_jit
def _values(model, x, y, moves):
    """The margins of the images after each of several shifts, one after another."""
    return jax.lax.map(lambda move: margin(model(x + move), y), moves)


def _quotients(model, x, y, directions):
    """Difference quotients [steps, directions, samples], in float64 if possible."""
    try:
        # Standard promotion, for constants in the model that are float32.
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            model64 = jax.tree.map(
                lambda a: a.astype(jnp.float64) if eqx.is_inexact_array(a) else a, model
            )
            x64 = jnp.asarray(np.asarray(x, np.float64))
            moves = jnp.asarray(_moves(directions, STEPS64))
            values = _values(model64, x64, y, moves)
            if values.dtype == jnp.float64:
                return _differences(np.asarray(values), STEPS64, "float64")
    except TypeError:
        pass  # an operation that takes float32 alone
    moves = jnp.asarray(_moves(directions, STEPS32), x.dtype)
    values = np.asarray(_values(model, x, y, moves), np.float64)
    return _differences(values, STEPS32, "float32")


def _moves(directions, steps):
    h = np.asarray(steps)[:, None, None, None, None, None]
    both = np.stack([h * directions, -h * directions])
    return both.reshape(-1, *directions.shape[1:])


def _differences(values, steps, precision):
    plus, minus = values.reshape(2, len(steps), -1, values.shape[-1])
    h = np.asarray(steps)[:, None, None]
    noise = np.finfo(precision).eps * max(1.0, float(np.max(np.abs(values)))) / steps[1]
    return (plus - minus) / (2 * h), steps, precision, noise


def _short(value) -> float:
    """Rounded to four digits; infinity becomes a large number, as JSON has none."""
    return float(f"{np.nan_to_num(float(value), nan=1e9, posinf=1e9):.4g}")


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 1e-3 else f"{share:.0e}"
