"""Randomized smoothing: certificates for any classifier, from votes under noise."""

import dataclasses
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from jnode._batches import check_images, padded_batches
from jnode.sharding import replicate, shard_batch, sharded, split_rows

ABSTAIN = -1
# Limits, so that float32 represents a pixel plus noise, and 32 bits any sample's index.
SIGMAS = (1e-3, 1e3)
LARGEST_COUNT = 10**9


@dataclasses.dataclass(frozen=True)
class Smoothing:
    r"""How to smooth a classifier, and how much to sample.

    **Arguments:**

    - `sigma`: the noise's standard deviation in pixel units, 0.001 to 1000. More noise
        certifies larger radii, but for fewer images.
    - `n0`: noisy samples that choose the class.
    - `n`: fresh samples that bound its probability, or that vote in `smooth_predict`.
        They cap the radius at `largest_radius`.
    - `alpha`: the probability, in (0, 1), with which the answer for an image may be
        wrong.
    - `batch_size`: samples at a time. It changes speed and memory, not the noise.

    **Raises:** `ValueError` for anything else, and for `n` so small that even a
    unanimous vote would certify nothing: $n$ must exceed $\log_2 (1/\alpha)$.
    """

    sigma: float
    n0: int = 100
    n: int = 10_000
    alpha: float = 0.001
    batch_size: int = 500

    def __post_init__(self):
        low, high = SIGMAS
        if not low <= self.sigma <= high:
            raise ValueError(
                f"sigma must lie between {low:g} and {high:g} pixel units, not "
                f"{self.sigma!r}: 0.25 is a usual choice for pixels in [0, 1]."
            )
        for name in ("n0", "n", "batch_size"):
            count = getattr(self, name)
            integer = isinstance(count, int) and not isinstance(count, bool)
            if not integer or not 1 <= count <= LARGEST_COUNT:
                raise ValueError(
                    f"{name} must be an integer from 1 to {LARGEST_COUNT}, "
                    f"not {count!r}."
                )
        if not 0 < self.alpha < 1:
            raise ValueError(
                f"alpha must lie strictly between 0 and 1, not {self.alpha!r}: 0.001 "
                "lets one answer in a thousand be wrong."
            )
        if not self.alpha ** (1 / self.n) > 0.5:
            least = math.floor(-math.log2(self.alpha)) + 1
            raise ValueError(
                f"n must be at least {least} for alpha={self.alpha:g}, not {self.n}: "
                "fewer samples cannot certify any image."
            )

    @property
    def largest_radius(self) -> float:
        """The radius of a unanimous vote: the largest one possible with `n` samples."""
        return _radius(self, self.n)


@dataclasses.dataclass(frozen=True)
class SmoothedPrediction:
    """The result of `smooth_certify`.

    - `predictions`: the smoothed classifier's class, or -1 where it abstains.
    - `radii`: the certified L2 radius in pixel units, 0 where it abstains.
    """

    predictions: Int[np.ndarray, " batch"]
    radii: Float[np.ndarray, " batch"]


def smooth_certify(
    model: Callable,
    images: ArrayLike,
    smoothing: Smoothing,
    *,
    key: PRNGKeyArray,
    progress: bool = False,
    mesh: Mesh | None = None,
) -> SmoothedPrediction:
    r"""Classes and certified L2 radii of the smoothed classifier (Cohen et al., 2019).

    The smoothed classifier $g(x)$ is the class that `model` most probably gives to
    $x + \varepsilon$, $\varepsilon \sim \mathcal N(0, \sigma^2 I)$. `n0` samples choose
    a class; `n` fresh ones give a Clopper-Pearson lower bound $p$ on its probability,
    at confidence $1 - \alpha$. If $p > 1/2$ the radius is $\sigma\,\Phi^{-1}(p)$, else
    it abstains (CERTIFY and Theorem 1 of Cohen, Rosenfeld & Kolter, ICML 2019, arXiv
    1902.02918).

    What is certified: for each image, with probability at least $1 - \alpha$ over the
    noise drawn here, it abstains or $g$ predicts this class on the whole ball of this
    radius. That is

    - of $g$, not of `model`, whose own prediction any perturbation may change;
    - per image: among many images some $\alpha$ of the answers may be wrong, and to
        keep the best of several keys voids the statement;
    - under one assumption: that float32 samples are Gaussian and float32 sums exact.
        They nearly are, but a model made for it can exploit the difference (Voráček &
        Hein, ICLR 2023, arXiv 2207.07209).

    Nothing is assumed about `model`: it may use any solver, including adaptive ones.

    **Arguments:**

    - `model`: any map from one image [height, width, channels] to logits [classes] that
        JAX can trace. Logits that are not finite count for no class.
    - `images`: [batch, height, width, channels], floats in [0, 1].
    - `smoothing`: the noise, and the numbers of samples.
    - `key`: the same key gives the same answer. The noise of an image depends on the
        key and on its place in the batch, not on the other images.
    - `progress`: whether to draw a progress bar.
    - `mesh`: over what devices, of one process or several, to spread the images, one at
        a time on each. The answer does not depend on it.

    **Returns:** a `SmoothedPrediction`. As `radii` for `certified_accuracy`, take -1
    where `predictions` differ from the labels.

    **Raises:** `TypeError` and `ValueError` for bad arguments; at run time, any error
    of the model on one of the noisy images.
    """
    predictions, radii = [], []
    votes = _votes(model, images, smoothing, (0, 1), key, progress, mesh)
    for selection, estimation in votes:
        # The last count is that of samples without a prediction, which is not a class.
        chosen = int(np.argmax(selection[:-1]))
        radius = _radius(smoothing, int(estimation[chosen]))
        predictions.append(chosen if radius > 0 else ABSTAIN)
        radii.append(radius)
    return SmoothedPrediction(np.asarray(predictions), np.asarray(radii))


def smooth_predict(
    model: Callable,
    images: ArrayLike,
    smoothing: Smoothing,
    *,
    key: PRNGKeyArray,
    progress: bool = False,
    mesh: Mesh | None = None,
) -> Int[np.ndarray, " batch"]:
    r"""Classes of the smoothed classifier, without radii (Cohen et al., 2019).

    `n` samples vote. The winner is returned if a two-sided binomial test of it against
    the runner-up has a p-value of at most $\alpha$ (PREDICT of arXiv 1902.02918, after
    Hung & Fithian 2019): then, for each image with probability at least $1 - \alpha$,
    it is the smoothed classifier's class; otherwise the result is -1. This takes far
    fewer samples than a radius.

    Arguments, the assumption on float32, and errors are those of `smooth_certify`.

    **Returns:** classes [batch], with -1 where it abstains.
    """
    # Late, since it takes a second.
    from scipy.stats import binomtest

    predictions = []
    for (votes,) in _votes(model, images, smoothing, (1,), key, progress, mesh):
        second, first = np.argsort(votes, kind="stable")[-2:]
        wins, losses = int(votes[first]), int(votes[second])
        sure = binomtest(wins, wins + losses, 0.5).pvalue <= smoothing.alpha
        no_class = first == len(votes) - 1
        predictions.append(int(first) if sure and not no_class else ABSTAIN)
    return np.asarray(predictions)


def lower_bound(k: int, n: int, alpha: float) -> float:
    """A lower bound on the probability of an event seen `k` times in `n`.

    One-sided, exact (Clopper & Pearson 1934): it exceeds the truth with probability at
    most `alpha`.
    """
    # Late, since it takes a second.
    from scipy.stats import beta

    return float(beta.ppf(alpha, k, n - k + 1)) if k > 0 else 0.0


def _radius(smoothing: Smoothing, k: int) -> float:
    """The certified radius of a class with `k` of the `n` votes; 0 if nothing is
    certified."""
    from scipy.stats import norm

    p = lower_bound(k, smoothing.n, smoothing.alpha)
    if p <= 0.5:
        return 0.0
    # Sigma is that of the noise as drawn, a float32. The radius is rounded down by more
    # than the error of the quantiles, which also turns the theorem's open ball into a
    # closed one.
    sigma = float(np.float32(smoothing.sigma))
    return sigma * float(norm.ppf(p)) * (1 - 1e-6)


def _checked(model, images, smoothing):
    """The images as NumPy's, and the model baked where it can be; with its classes."""
    if not isinstance(smoothing, Smoothing):
        raise TypeError(
            "smoothing must be a jnode.certify.Smoothing, not "
            f"{type(smoothing).__name__}: write Smoothing(sigma=0.25)."
        )
    if not callable(model):
        raise TypeError(
            "model must be a function of one image, not "
            f"{type(model).__name__}: give what jnode.build or jnode.load returns."
        )
    images = np.asarray(images)
    check_images(images, shape=getattr(model, "image_shape", None))
    bake = getattr(model, "bake", None)
    model = model if bake is None else bake()
    one = jax.ShapeDtypeStruct(images.shape[1:], jnp.float32)
    logits = eqx.filter_eval_shape(model, one)
    if len(getattr(logits, "shape", ())) != 1 or len(logits) < 2:
        raise ValueError(
            "model must map one image to the logits [classes] of at least 2 classes, "
            f"not the shape {one.shape} to {logits}: leave jax.vmap to this function."
        )
    return np.asarray(images, np.float32), model, len(logits)


def _votes(
    model, images, smoothing, stages, key, progress, mesh
) -> Int32[np.ndarray, "n stages answers"]:
    """The votes on each image in some stages: 0, which chooses a class, and 1."""
    images, model, classes = _checked(model, images, smoothing)
    numbered = [(i, (smoothing.n0, smoothing.n)[i]) for i in stages]
    batch_size = min(smoothing.batch_size, max(smoothing.n0, smoothing.n))
    sigma = jnp.asarray(smoothing.sigma, jnp.float32)

    def some(rows, mesh):
        from jnode._progress import progress_bar

        shared = replicate((model, sigma, key), mesh)
        given = replicate([jnp.asarray(pair, jnp.int32) for pair in numbered], mesh)
        how = classes + 1, batch_size, mesh
        found = []
        with progress_bar(len(rows), show=progress, unit="image") as bar:
            group = 1 if mesh is None else mesh.size
            for _, batch, mask in padded_batches((rows, images[rows]), group):
                numbers, x = shard_batch(batch, mesh)
                votes = [_count(shared, numbers, x, stage, how) for stage in given]
                found.append(np.stack([*map(np.asarray, votes)], axis=1)[mask])
                bar.update(len(found[-1]))
        return np.concatenate(found)

    return split_rows(some, len(images), mesh)


@eqx.filter_jit
def _count(
    shared: tuple[Callable, Float[Array, ""], PRNGKeyArray],
    numbers: Int[Array, " devices"],
    images: Float[Array, "devices height width channels"],
    stage: Int32[Array, "2"],
    how: tuple[int, int, Mesh | None],
) -> Int32[Array, "devices answers"]:
    """Counts the predictions for noisy copies of images, of which each device has one.

    The number of samples is data, so that one compilation serves every number.
    """
    answers, batch_size, mesh = how

    def own(shared, numbers, images):
        (model, sigma, key), stage = shared
        stream = jr.fold_in(jr.fold_in(key, numbers[0]), stage[0])
        args = model, images[0], sigma, stream, stage[1]
        return _answers(*args, answers, batch_size)[None]

    return sharded(own, mesh)((shared, stage), numbers, images)


def _answers(model, image, sigma, key, samples, answers, batch_size):
    """How many of the noisy copies of an image were given each answer."""

    def answer(index):
        # Each sample has its own key, whatever the batch size. No clipping to [0, 1]:
        # the theorem is about the Gaussian itself.
        noise = jr.normal(jr.fold_in(key, index), image.shape, image.dtype)
        logits = model(image + sigma * noise)
        finite = jnp.all(jnp.isfinite(logits))
        return jnp.where(finite, jnp.argmax(logits), answers - 1)

    def one_batch(i, counts):
        index = i * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        wanted = index < samples  # the last batch has more
        return counts.at[jax.vmap(answer)(index)].add(wanted.astype(jnp.int32))

    batches = (samples + batch_size - 1) // batch_size
    # One count for each class, and one for samples without an answer.
    nothing = jnp.zeros(answers, jnp.int32)
    return jax.lax.fori_loop(jnp.zeros_like(batches), batches, one_batch, nothing)
