"""Attacks one after another, on the images that are still classified rightly."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, PRNGKeyArray
from tqdm import tqdm

from jnode._batches import check_batch_size, check_labels, padded_batches
from jnode.attacks.base import (
    AbstractAttack,
    check_budget,
    check_classes,
    describe,
    perturb,
)
from jnode.attacks.inputs import Classes, check_input
from jnode.attacks.losses import classes_of, is_random, logits_of
from jnode.sharding import (
    Sharded,
    check_divides,
    replicate,
    shard_batch,
    shareable,
)

STANDING, MISCLASSIFIED = -1, -2
SHOWN = 16
"""How many attacked images are kept of each attack, broken or not."""
SMALL = 32
"""Samples, below which a smaller batch is hardly quicker."""


@dataclasses.dataclass(frozen=True)
class Attacked:
    """The samples that one attack was run on, and what became of them.

    - `samples`: which; those that stood before.
    - `predictions`: the class given to each one's attacked image, -1 where its logits
        are not finite.
    - `broken`: which of all samples it broke.
    - `images`: the attacked images of these, the proof that they are broken.
    - `shown`: the attacked images of the first samples, broken or not.
    - `seconds`: how long it took, compilation included.
    """

    samples: Int[np.ndarray, " attacked"]
    predictions: Int[np.ndarray, " attacked"]
    broken: Int[np.ndarray, " broken"]
    images: Float[np.ndarray, "broken height width channels"]
    shown: Float[np.ndarray, "shown height width channels"]
    seconds: float | Float[np.ndarray, ""]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What `run` found.

    - `images`, `labels`: the clean images and their classes.
    - `logits`: of the clean images.
    - `attacked`: what each attack did.
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
    def standing(self) -> Bool[np.ndarray, "attacks n"]:
        """Which samples each attack was run on and did not break."""
        standing = np.zeros((len(self.attacked), len(self.labels)), bool)
        for mask, found in zip(standing, self.attacked, strict=True):
            mask[found.samples] = True
            mask[found.broken] = False
        return standing

    @property
    def broken_by(self) -> Int[np.ndarray, " n"]:
        """The number of the first attack that broke each sample; `STANDING` (-1) where
        none did, `MISCLASSIFIED` (-2) where the clean image was wrong already."""
        right = self.predictions == self.labels
        by = np.where(right, STANDING, MISCLASSIFIED)
        for i, found in reversed([*enumerate(self.attacked)]):
            by[found.broken] = i
        return by

    @property
    def adversarial(self) -> Float[np.ndarray, "n height width channels"]:
        """The image by which each sample was first broken, else the clean one."""
        images = self.images.copy()
        for found in reversed(self.attacked):
            images[found.broken] = found.images
        return images

    @property
    def robust_accuracy(self) -> float:
        """The share of samples that no attack broke: the worst case over them all.

        NaN where there are no samples.
        """
        by = self.broken_by
        return float(np.mean(by == STANDING)) if len(by) else math.nan


Keep = Callable[[int, Callable[[], Attacked]], Attacked]


def run(
    model: Callable,
    images: ArrayLike,
    labels: Classes,
    attacks: Sequence[AbstractAttack],
    *,
    key: PRNGKeyArray,
    batch_size: int = 250,
    successive: bool = True,
    keep: Keep = lambda number, make: make(),
    progress: bool = True,
    mesh: Mesh | None = None,
) -> Outcome:
    """Attacks what is classified rightly, and judges each attacked image anew.

    An attack's restarts and targets count as attacks of their own: what one breaks the
    next is spared. What stands is gathered into full batches of one size: one
    compilation an attack; where less than a batch stands, smaller ones are taken.

    **Arguments:**

    - `model`: a map from a batch of images to logits (of single images wrapped in
        `jnode.batched`, a random one in `RandomModel`).
    - `images`: [n, height, width, channels], float32 or float64, in [0, 1]. They are
        attacked in float32 unless JAX is in its 64-bit mode.
    - `labels`: [n], the true classes as integers.
    - `attacks`: in order, for example `autoattack(8 / 255)`.
    - `key`: of the attacks' random numbers; the same gives the same result.
    - `batch_size`: images at a time.
    - `successive`: whether an attack is spared the samples that one before it broke, in
        the same norm with at most the same epsilon.
    - `keep`: is given each attack's number and the function that runs it, and may
        remember what was found.
    - `progress`: whether to draw a progress bar.
    - `mesh`: over what devices to spread each batch (`jnode.sharding.data_mesh`); by
        default JAX's first device. The results are the same, unless an attack draws
        random numbers for a smaller batch, which is made a multiple of the devices.

    **Returns:** an `Outcome`; its images lie in [0, 1], within the attacks' budgets.

    **Raises:** `TypeError` or `ValueError` for bad images, labels or batch size, or a
    model of too few classes; `RuntimeError` for an attack that leaves its budget.
    """
    check_batch_size(batch_size)
    check_divides(batch_size, mesh)
    images, labels = (np.asarray(x) for x in check_input(images, labels))
    # Float64 in JAX's 64-bit mode alone.
    images = images.astype(jax.dtypes.canonicalize_dtype(images.dtype))
    labels = labels.astype(int)
    if len(labels) == 0:
        return _nothing(images, labels, attacks)
    model = over_devices(model, mesh)
    length = min(batch_size, shareable(len(labels), mesh))
    logits = _clean_logits(model, images, length, mesh)
    check_labels(labels, logits.shape[1])
    for attack in attacks:
        check_classes(attack, logits.shape[1])
    problem = _Problem(model, images, labels, logits, length, mesh)
    found = _in_order(attacks, problem, key, successive, keep, progress)
    return Outcome(images, labels, logits, tuple(found))


BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}"


def over_devices(model: Callable, mesh: Mesh | None) -> Callable:
    """The classifier of batches that are spread over the devices of a mesh, if any.

    What is or holds a `RandomModel` draws for the whole batch, as on one device: it
    stays one program, which JAX spreads, and an adaptive solve in it ends on all
    devices at once.
    """
    if mesh is None:
        return model
    return replicate(model if is_random(model) else Sharded(model, mesh), mesh)


class _Problem(NamedTuple):
    """What all attacks have in common."""

    model: Callable
    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    length: int
    mesh: Mesh | None


def _in_order(attacks, problem, key, successive, keep, progress) -> list[Attacked]:
    """What each attack found on the samples that it is not spared."""
    right = classes_of(problem.logits) == problem.labels
    attacked: list[Attacked] = []
    with tqdm(total=len(attacks), disable=not progress, bar_format=BAR) as bar:
        for i, attack in enumerate(attacks):
            stands = right.copy()
            for earlier, found in zip(attacks[:i], attacked, strict=True):
                if successive and _covers(earlier, attack):
                    stands[found.broken] = False
            samples = np.flatnonzero(stands)
            bar.set_description(f"{describe(attack)}, {len(samples)} stand")
            own = jax.random.fold_in(key, i)
            attacked.append(keep(i, partial(_run, attack, problem, samples, own, bar)))
            bar.update(i + 1 - bar.n)
    return attacked


def _clean_logits(model, images, length, mesh):
    batches = padded_batches((images,), length)
    return np.concatenate(
        [
            np.asarray(logits_of(model, shard_batch(x, mesh)))[mask]
            for _, (x,), mask in batches
        ]
    )


def _covers(earlier: AbstractAttack, attack: AbstractAttack) -> bool:
    """Whether an image that `earlier` broke is broken in `attack`'s budget too."""
    same = earlier.norm == attack.norm
    return same and float(earlier.epsilon) <= float(attack.epsilon)


def _nothing(images, labels, attacks) -> Outcome:
    """Of no images."""
    found = Attacked(labels, labels, labels, images, images, 0.0)
    return Outcome(images, labels, images[:, 0, 0], (found,) * len(attacks))


def _run(attack, problem: _Problem, samples, key, bar) -> Attacked:
    """One attack on these samples, restart by restart, or target by target."""
    begin, labels = time.perf_counter(), problem.labels
    predictions = np.full(len(samples), -1)
    shown = problem.images[samples[:SHOWN]]
    broken, images = [samples[:0]], [problem.images[:0]]
    parts, left = attack.parts(), samples
    for j, part in enumerate(parts):
        own = jax.random.fold_in(key, j)
        for chosen, adversarial, classes in _batches(part, problem, left, own):
            place = np.searchsorted(samples, chosen)
            predictions[place] = classes
            first = place < SHOWN
            shown[place[first]] = adversarial[first]
            hit = classes != labels[chosen]
            broken.append(chosen[hit])
            images.append(adversarial[hit])
            # Sums of such shares may round up past the end.
            share = len(chosen) / len(left) / len(parts)
            bar.update(min(share, bar.total - bar.n))
        left = np.setdiff1d(left, np.concatenate(broken))
    seconds = round(time.perf_counter() - begin, 3)
    every = np.concatenate(broken), np.concatenate(images)
    return Attacked(samples, predictions, *every, shown, seconds)


def _batches(
    part: AbstractAttack, problem: _Problem, samples: Int[np.ndarray, " left"], key
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each batch: which samples, their attacked images, the classes given to these.

    **Raises:** `RuntimeError` for an attack that leaves its budget.
    """
    model, images, labels, logits, length, mesh = problem
    multiple = 1 if mesh is None else mesh.size
    size = fitted(length, len(samples), multiple)
    batches = padded_batches((images, labels, logits), size, samples=samples)
    for i, (chosen, arrays, mask) in enumerate(batches):
        x, y, clean = shard_batch(arrays, mesh)
        found = perturb(part, model, x, y, clean, jax.random.fold_in(key, i))
        check_budget(part, x, found)
        classes = classes_of(logits_of(model, found))
        yield chosen, np.asarray(found)[mask], classes[mask]


def fitted(length: int, count: int, multiple: int = 1) -> int:
    """A batch for so many samples: `length`, or a share of it where fewer are left.

    Shares are 3/4, 1/2, 3/8 and so on, multiples of the number of devices: each is one
    more compilation, which long attacks on few samples repay.
    """
    shares = [share * 0.5**k for k in range(8) for share in (0.75, 0.5)]
    sizes = [math.ceil(share * length / multiple) * multiple for share in shares]
    return min([length, *(size for size in sizes if size >= max(count, SMALL))])
