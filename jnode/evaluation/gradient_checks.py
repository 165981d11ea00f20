"""Whether the gradient that attacks follow is the gradient of the evaluated solve."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.typing import ArrayLike

from jnode.attacks.square import margin
from jnode.models.batched import batched
from jnode.solvers import Solver

if TYPE_CHECKING:
    from jnode.models import ODEClassifier


def adjoint(solver: Solver) -> dict[str, Any]:
    """A flag where the adjoint is continuous: optimise-then-discretise."""
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
        "says": how[continuous],
        "flags": flags,
    }


LARGE = 0.1
"""The median relative discrepancy above which there is a flag."""
SHATTERED = 0.5
"""The same at the largest step, an L2 distance of 0.1, whatever it is at small ones."""
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
    length 1, for several steps $h$. The discrepancy is an estimate of
    $\|g - \nabla m\| / \|\nabla m\|$: random directions, the mean of whose squares
    estimates a squared norm, or what is seen along $g$ if that is more. Of the steps
    each sample keeps the one that agrees best.

    An adaptive solver's gradient holds the steps fast that the solve took (Diffrax
    stops gradients at step sizes), and where a step is accepted or rejected there is a
    jump. The map therefore has a fine structure, as high as the solver's error, of
    which the gradient does not know: small steps $h$ see it even if the tolerance is
    tight, and larger ones pass over it unless it is loose. So the discrepancy at each
    $h$ is given too.

    **Arguments:** a map from a batch of images to logits; images and labels, of which
    the first `samples` are looked at; the seed of the directions.

    **Returns:** the discrepancy of each sample, their median and largest, the median at
    each step, the precision, the noise level of the differences (relative, of rounding,
    at the second step), words and flags.
    """
    x = jnp.asarray(images)[:samples]
    y = jnp.asarray(labels)[:samples]
    g = np.asarray(_gradient(model, x, y), np.float64)
    size = np.sqrt(np.sum(g**2, axis=(1, 2, 3), keepdims=True))
    random = np.asarray(jr.normal(jr.key(seed), (DIRECTIONS, *x.shape)), np.float64)
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
    best = np.min(relative, axis=0)
    median, largest = float(np.median(best)), float(np.max(best))
    flags = []
    if not median <= LARGE:
        flags.append(
            f"wrong gradient: it differs by {median:.1%} (median of {len(x)} images) "
            "from finite differences of the evaluated solve at every scale, so attacks "
            "that follow it go astray."
        )
    far = float(np.median(relative[-1]))
    if not flags and not far <= SHATTERED:
        flags.append(
            f"shattered gradients: over an L2 distance of {steps[-1]:g} the model "
            f"changes otherwise than its gradient says, by {far:.0%} of it, so attacks "
            "that follow it go astray."
        )
    says = (
        f"The attacks' gradient differs from central differences of the evaluated "
        f"model in {precision} by {_percent(median)} (median of {len(x)} images; at "
        f"most {_percent(largest)}), and by {_percent(far)} over an L2 distance of "
        f"{steps[-1]:g}."
    )
    return {
        "discrepancies": [_short(r) for r in best],
        "median": _short(median),
        "largest": _short(largest),
        "median_at_step": {
            f"{h:g}": _short(np.median(r)) for h, r in zip(steps, relative, strict=True)
        },
        "precision": precision,
        "noise": _short(np.median(noise * np.sqrt(n) / np.maximum(size, 1e-300))),
        "says": says,
        "flags": flags,
    }


def held_steps(
    model: "ODEClassifier", images: ArrayLike, labels: ArrayLike, *, samples: int = 2
) -> float:
    """How far an adaptive model's gradient is from that of the steps that it took.

    **Arguments:** the model; images and labels, of which the first `samples` are looked
    at: each asks for a compilation of its own.

    **Returns:** the largest relative difference to the gradient of the fixed-step model
    that takes the same steps (`ODEClassifier.freeze`).
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
    """The margins at each of some moved images, which are mapped one after another."""
    return jax.lax.map(lambda move: margin(model(x + move), y), moves)


def _quotients(model, x, y, directions):
    """Difference quotients [steps, directions, samples], in float64 where it goes."""
    try:
        # Standard promotion: a constant of the model's own meets float64 so.
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
    """Four digits, and a large finite number where there is none: JSON has no inf."""
    return float(f"{np.nan_to_num(float(value), nan=1e9, posinf=1e9):.4g}")


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 1e-3 else f"{share:.0e}"
