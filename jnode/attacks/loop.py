"""Runs attacks one after another on the images that are still classified correctly."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from jnode._batches import check_batch_size, padded_batches
from jnode._progress import progress_bar
from jnode.attacks.base import check_classes, perturb
from jnode.attacks.budget import Budget
from jnode.attacks.goals import AbstractGoal, Targeted, Untargeted
from jnode.attacks.inputs import Classes, check_input, check_ranges
from jnode.attacks.losses import classes_of, is_random, logits_of
from jnode.attacks.noise import GaussianNoise
from jnode.attacks.trial import Pair, Trial, as_trial, describe
from jnode.sharding import (
    Sharded,
    check_divides,
    gather,
    replicate,
    scatter,
    shareable,
)

ROBUST = -1
MISCLASSIFIED = -2
SHOWN = 16
"""How many attacked images are kept of each trial, adversarial or not."""
SMALL = 32
"""Samples, below which a smaller batch is hardly quicker."""


@dataclasses.dataclass(frozen=True)
class Attacked:
    """The samples of one trial and its results on them.

    - `samples`: the indices of the samples on which the trial ran.
    - `predictions`: the class given to each one's attacked image, -1 where its logits
        are not finite.
    - `successes`: the indices of the samples on which it succeeded.
    - `images`: the adversarial images of the successes.
    - `shown`: the attacked images of the first samples, adversarial or not.
    - `seconds`: the run time, including compilation.
    """

    samples: Int[np.ndarray, " attacked"]
    predictions: Int[np.ndarray, " attacked"]
    successes: Int[np.ndarray, " successes"]
    images: Float[np.ndarray, "successes height width channels"]
    shown: Float[np.ndarray, "shown height width channels"]
    seconds: float | Float[np.ndarray, ""]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of `run`.

    - `images`, `labels`: the clean images and their classes.
    - `logits`: of the clean images.
    - `attacked`: the result of each trial.
    """

    images: Float[np.ndarray, "n height width channels"]
    labels: Int[np.ndarray, " n"]
    logits: Float[np.ndarray, "n classes"]
    attacked: tuple[Attacked, ...]

    @property
    def predictions(self) -> Int[np.ndarray, " n"]:
        """The class given to each clean image; -1 where its logits are not finite."""
        return classes_of(self.logits)

    @property
    def robust(self) -> Bool[np.ndarray, "trials n"]:
        """Which samples each trial was run on without success."""
        robust = np.zeros((len(self.attacked), len(self.labels)), bool)
        for mask, found in zip(robust, self.attacked, strict=True):
            mask[found.samples] = True
            mask[found.successes] = False
        return robust

    @property
    def first_success(self) -> Int[np.ndarray, " n"]:
        """The number of the first trial that succeeded on each sample; `ROBUST` (-1) if
        none did, `MISCLASSIFIED` (-2) if the clean image is already misclassified."""
        right = self.predictions == self.labels
        first = np.where(right, ROBUST, MISCLASSIFIED)
        for i, found in reversed([*enumerate(self.attacked)]):
            first[found.successes] = i
        return first

    @property
    def adversarial(self) -> Float[np.ndarray, "n height width channels"]:
        """The first adversarial image of each sample, else the clean one."""
        images = self.images.copy()
        for found in reversed(self.attacked):
            images[found.successes] = found.images
        return images

    @property
    def robust_accuracy(self) -> float:
        """The share of all samples that are classified correctly and on which no trial
        succeeded.

        The worst case over all trials; NaN where there are no samples.
        """
        first = self.first_success
        return float(np.mean(first == ROBUST)) if len(first) else math.nan


Keep = Callable[[int, Callable[[], Attacked]], Attacked]


def run(
    model: Callable,
    images: ArrayLike,
    labels: Classes,
    trials: Sequence[Pair],
    *,
    targets: Classes | None = None,
    key: PRNGKeyArray,
    batch_size: int = 250,
    successive: bool = True,
    keep: Keep = lambda number, make: make(),
    progress: bool = True,
    mesh: Mesh | None = None,
) -> Outcome:
    """Attacks the images that are classified correctly, and classifies the results.

    The restarts of an attack run one after another, and each leaves out the samples on
    which an earlier one succeeded. The remaining samples are gathered into full
    batches, or into smaller ones if there are fewer, with one compilation for each
    attack and batch size.

    **Arguments:**

    - `model`: a map from a batch of images to logits (wrap a model of one image in
        `jnode.batched`, and a random one in `RandomModel`).
    - `images`: [n, height, width, channels], float32 or float64, in [0, 1]. They are
        attacked in float32 unless JAX is in its 64-bit mode.
    - `labels`: [n], the true classes as integers.
    - `trials`: attacks with their budgets, in order: pairs such as
        `(PGD(), Budget("linf", 8 / 255))`, or `autoattack(Budget("linf", 8 / 255))`.
    - `targets`: [n], a class for each image other than its label. With targets an
        attack succeeds on an image if the prediction is its target.
    - `key`: of the attacks' random numbers; the same gives the same result.
    - `batch_size`: images at a time.
    - `successive`: whether a trial leaves out the samples on which an earlier one
        succeeded in the same norm with at most the same epsilon.
    - `keep`: a function of each trial's number and of the function that runs it, which
        may store the result; `progress`: whether to draw a progress bar.
    - `mesh`: the devices for each batch, by default JAX's first. Results are the same,
        except for random numbers in a smaller last batch, a multiple of the devices.

    **Returns:** an `Outcome`; its images lie in [0, 1], within the budgets.

    **Raises:** `TypeError` or `ValueError` for bad arguments, or a model with too few
    classes; `RuntimeError` for an attack that exceeds its budget.
    """
    check_batch_size(batch_size)
    check_divides(batch_size, mesh)
    x, y, aims = check_input(images, labels, targets)
    # Float64 only in JAX's 64-bit mode.
    images = np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
    labels = np.asarray(y, int)
    trials = [_fitting(as_trial(trial), len(labels)) for trial in trials]
    if len(labels) == 0:
        return _nothing(model, images, labels, trials)
    problem = _clean_pass(model, images, labels, aims, batch_size, mesh)
    for trial in trials:
        check_classes(trial.attack, problem.logits.shape[1])
    found = _in_order(trials, problem, key, successive, keep, progress)
    return Outcome(images, labels, problem.logits, tuple(found))


BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}"


def over_devices(model: Callable, mesh: Mesh | None) -> Callable:
    """The classifier with its batches sharded over the devices of a mesh, if any.

    A `RandomModel`, or a model that holds one, draws random numbers for the whole
    batch, as on one device. So it remains one program, which JAX shards, and an
    adaptive solve in it ends on all devices at once.
    """
    if mesh is None:
        return model
    return replicate(model if is_random(model) else Sharded(model, mesh), mesh)


class _Problem(NamedTuple):
    """What all trials have in common."""

    model: Callable
    images: np.ndarray
    labels: np.ndarray
    goal: type[AbstractGoal]
    classes: np.ndarray
    logits: np.ndarray
    length: int
    mesh: Mesh | None


def _in_order(trials, problem, key, successive, keep, progress) -> list[Attacked]:
    """What each trial found on the samples that it is not spared."""
    right = classes_of(problem.logits) == problem.labels
    attacked: list[Attacked] = []
    with progress_bar(len(trials), show=progress, bar_format=BAR) as bar:
        for i, trial in enumerate(trials):
            left = right.copy()
            for earlier, found in zip(trials[:i], attacked, strict=True):
                if successive:
                    within = _within(earlier, trial, len(right))
                    left[found.successes[within[found.successes]]] = False
            samples = np.flatnonzero(left)
            bar.set_description(f"{describe(trial)}, {len(samples)} left")
            own = jax.random.fold_in(key, i)
            attacked.append(keep(i, partial(_run, trial, problem, samples, own, bar)))
            bar.update(i + 1 - bar.n)
    return attacked


def _clean_pass(model, images, labels, targets, batch_size, mesh) -> _Problem:
    """The problem, with the logits of the clean images."""
    model = over_devices(model, mesh)
    length = min(batch_size, shareable(len(labels), mesh))
    logits = _clean_logits(model, images, length, mesh)
    check_ranges(labels, targets, logits.shape[1])
    goal = (Untargeted, labels)
    if targets is not None:
        goal = (Targeted, np.asarray(targets, int))
    return _Problem(model, images, labels, *goal, logits, length, mesh)


def _clean_logits(model, images, length, mesh):
    batches = padded_batches((images,), length)
    return np.concatenate(
        [gather(logits_of(model, scatter(x, mesh)))[mask] for _, (x,), mask in batches]
    )


def _fitting(trial: Trial, n: int) -> Trial:
    if trial.epsilon.shape not in ((), (n,)):
        raise ValueError(
            f"epsilon must be a number or one number for each of the {n} images, "
            f"not of the shape {trial.epsilon.shape}."
        )
    return trial


def _within(earlier: Trial, trial: Trial, n: int) -> Bool[np.ndarray, " n"]:
    """The samples for which an image within `earlier`'s budget is within `trial`'s
    too."""
    same = earlier.norm == trial.norm and trial.budget is not None
    return np.broadcast_to(same & (earlier.epsilon <= trial.epsilon), (n,))


def _nothing(model, images, labels, trials) -> Outcome:
    """Of no images."""
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    shape = eqx.filter_eval_shape(logits_of, model, one).shape
    found = Attacked(labels, labels, labels, images, images, 0.0)
    logits = np.zeros((0, shape[1]), images.dtype)
    return Outcome(images, labels, logits, (found,) * len(trials))


def _run(trial: Trial, problem: _Problem, samples, key, bar) -> Attacked:
    """One trial on these samples, restart by restart, or target by target."""
    begin = time.perf_counter()
    predictions = np.full(len(samples), -1)
    shown = problem.images[samples[:SHOWN]]
    successes, images = [samples[:0]], [problem.images[:0]]
    parts, left = trial.parts(), samples
    for j, part in enumerate(parts):
        own = jax.random.fold_in(key, j)
        for chosen, adversarial, classes, success in _batches(part, problem, left, own):
            place = np.searchsorted(samples, chosen)
            predictions[place] = classes
            first = place < SHOWN
            shown[place[first]] = adversarial[first]
            successes.append(chosen[success])
            images.append(adversarial[success])
            # Rounding may take the sum of these fractions past the end.
            share = len(chosen) / len(left) / len(parts)
            bar.update(min(share, bar.total - bar.n))
        left = np.setdiff1d(left, np.concatenate(successes))
    seconds = round(time.perf_counter() - begin, 3)
    every = np.concatenate(successes), np.concatenate(images)
    return Attacked(samples, predictions, *every, shown, seconds)


def _batches(
    part: Trial, problem: _Problem, samples: Int[np.ndarray, " left"], key
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """For each batch: the samples, their attacked images, the predictions for these,
    and whether the goal is reached.

    **Raises:** `RuntimeError` for an attack that exceeds its budget.
    """
    model, images, _, goal, classes, logits, length, mesh = problem
    multiple = 1 if mesh is None else mesh.size
    size = fitted(length, len(samples), multiple)
    epsilon = np.broadcast_to(part.epsilon, (len(images),)).astype(images.dtype)
    whole = images, classes, logits, epsilon
    batches = padded_batches(whole, size, samples=samples)
    for i, (chosen, arrays, mask) in enumerate(batches):
        x, y, clean = scatter(arrays[:3], mesh)
        own = replicate(jax.random.fold_in(key, i), mesh)
        if isinstance(part.attack, GaussianNoise):
            found = part.attack(x, key=own)
        else:
            budget = Budget(part.norm, jnp.asarray(arrays[3]))
            spread = scatter(budget, mesh)
            found = perturb(part.attack, model, x, goal(y), clean, spread, own)
            budget.check(part.attack.name, arrays[0], gather(found))
        given = classes_of(gather(logits_of(model, found)))
        success = goal.met(given, arrays[1])
        yield chosen, gather(found)[mask], given[mask], success[mask]


def fitted(length: int, count: int, multiple: int = 1) -> int:
    """The batch size for `count` samples: `length`, or a fraction of it if they are
    fewer.

    The fractions are 3/4, 1/2, 3/8 and so on, rounded to multiples of `multiple`. Each
    is one more compilation, which pays off for long attacks on few samples.
    """
    shares = [share * 0.5**k for k in range(8) for share in (0.75, 0.5)]
    sizes = [math.ceil(share * length / multiple) * multiple for share in shares]
    return min([length, *(size for size in sizes if size >= max(count, SMALL))])
