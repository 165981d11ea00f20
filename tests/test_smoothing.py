"""Randomized smoothing: radii against known ones, and the statistics behind them."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

import jnode
from jnode.certify import Smoothing, smooth_certify, smooth_predict
from jnode.certify.smoothing import _count, lower_bound
from tests.helpers import small_model

SHAPE = (4, 4, 1)
SMALL = Smoothing(0.5, n0=20, n=300, batch_size=64)
WEIGHTS = np.where(np.arange(16).reshape(SHAPE) % 2, 0.25, -0.25).astype(np.float32)


def distance(x):
    """The signed distance of an image to a plane."""
    return jnp.sum(WEIGHTS * x) + 0.13


def linear(x):
    """Two classes on either side of the plane.

    Smoothing leaves its decision as it is, so its true radius is the distance.
    """
    return jnp.stack([-distance(x), distance(x)])


def binary_images(n, seed=0):
    """Every pixel 0 or 1, where clipping the noise would halve it."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (n, *SHAPE)).astype(np.float32)


def votes(model, image, key, samples, batch_size, classes=2):
    shared = model, jnp.asarray(0.5, jnp.float32), key
    stage = jnp.asarray([0, samples], jnp.int32)
    number, one = jnp.zeros(1, jnp.int32), jnp.asarray(image)[None]
    how = classes + 1, batch_size, None
    return np.asarray(_count(shared, number, one, stage, how))[0]


def test_radius_of_a_linear_model_is_below_the_true_one_and_near_it():
    images = binary_images(12)
    true = np.asarray(jax.vmap(distance)(jnp.asarray(images)))
    for sigma in (0.25, 0.5):
        smoothing = Smoothing(sigma, n=40_000)
        found = smooth_certify(linear, images, smoothing, key=jr.key(1))
        near = np.abs(true) < 2 * sigma  # not capped by the number of samples
        far = np.abs(true) > 0.1 * sigma
        assert (near & far).sum() >= 4
        assert (found.predictions == (true > 0))[far].all()
        assert (found.radii <= np.abs(true))[found.radii > 0].all()
        # Of short radii the statistical error is a larger share.
        assert (found.radii >= 0.9 * np.abs(true) - 0.02 * sigma)[near & far].all()
        assert (found.radii <= smoothing.largest_radius).all()
    assert found.radii.dtype == np.float64


def test_votes_have_the_probability_of_the_gaussian():
    image = binary_images(1)[0]
    p = float(norm.cdf(float(distance(jnp.asarray(image))) / 0.5))
    counts = votes(linear, image, jr.key(0), 100_000, 500)
    assert counts.sum() == 100_000
    assert binomtest(int(counts[1]), 100_000, p).pvalue > 1e-3


def test_lower_bound_is_clopper_pearson():
    for n in (1, 10, 1000):
        for k in sorted({0, 1, n // 3, n - 1, n}):
            for alpha in (0.001, 0.05, 0.5):
                test = binomtest(k, n, alternative="greater")
                interval = test.proportion_ci(1 - alpha, method="exact")
                assert lower_bound(k, n, alpha) == pytest.approx(interval.low, abs=1e-9)


@pytest.mark.parametrize("n, p", [(20, 0.6), (100, 0.95), (1000, 0.99)])
def test_lower_bound_covers(n, p):
    ks = np.arange(n + 1)
    bounds = np.asarray([lower_bound(int(k), n, 0.05) for k in ks])
    # The exact probability of an excess, and the same by simulation.
    excess = binom.pmf(ks, n, p)[bounds > p].sum()
    assert 0.005 < excess <= 0.05
    drawn = np.random.default_rng(0).binomial(n, p, 20_000)
    assert (bounds[drawn] > p).mean() == pytest.approx(excess, abs=0.006)


def test_ties_abstain():
    # The whole procedure errs as rarely as it says, which it would not if the samples
    # that choose the class also counted for it: that gives a share of about 0.35.
    model = lambda x: jnp.stack([x[0, 0, 0], 1 - x[0, 0, 0]])
    images = np.full((400, 1, 1, 1), 0.5, np.float32)
    smoothing = Smoothing(0.5, n0=101, n=101, alpha=0.2, batch_size=101)
    answers = (
        smooth_certify(model, images, smoothing, key=jr.key(0)).predictions,
        smooth_predict(model, images, smoothing, key=jr.key(0)),
    )
    for predictions in answers:
        assert 0.1 < (predictions >= 0).mean() < 0.25
        assert set(predictions) == {-1, 0, 1}
    strict = dataclasses.replace(smoothing, alpha=1e-9)
    found = smooth_certify(model, images[:20], strict, key=jr.key(0))
    assert (found.predictions == -1).all()
    assert (found.radii == 0).all()
    assert (smooth_predict(model, images[:20], strict, key=jr.key(0)) == -1).all()


def test_unanimous_votes_reach_the_largest_radius():
    images = binary_images(2)
    for smoothing in (Smoothing(0.5), Smoothing(1.0, n=50, alpha=0.01)):
        found = smooth_certify(
            lambda x: jnp.asarray([0.0, 1.0, 0.5]), images, smoothing, key=jr.key(0)
        )
        expected = smoothing.sigma * norm.ppf(smoothing.alpha ** (1 / smoothing.n))
        assert (found.predictions == 1).all()
        assert (found.radii == smoothing.largest_radius).all()
        assert found.radii == pytest.approx(expected, rel=1e-5)
        assert (found.radii < expected).all()


def test_logits_that_are_not_finite_count_for_no_class():
    def model(x):
        # No answer above the middle.
        bad = jnp.where(x[0, 0, 0] > 0.5, jnp.nan, 0.0)
        return jnp.stack([bad, bad + 1])

    images = np.stack([np.full(SHAPE, v, np.float32) for v in (0.0, 0.5, 1.0)])
    smoothing = Smoothing(0.25, n=1000)
    found = smooth_certify(model, images, smoothing, key=jr.key(0))
    # Class 1 has the probability Phi(2), not 1.
    assert found.predictions.tolist() == [1, -1, -1]
    assert 0.4 < found.radii[0] <= 0.5
    predictions = smooth_predict(model, images, smoothing, key=jr.key(0))
    assert predictions.tolist() == [1, -1, -1]


def test_predictions_agree_with_the_certified_ones():
    images = binary_images(12)
    true = np.asarray(jax.vmap(distance)(jnp.asarray(images))) > 0
    predictions = smooth_predict(linear, images, Smoothing(0.25, n=5000), key=jr.key(3))
    assert np.issubdtype(predictions.dtype, np.integer)
    answered = predictions >= 0
    assert answered.mean() > 0.6
    assert (predictions == true)[answered].all()


def test_the_key_decides_and_neither_batch_mates_nor_batch_size_do():
    images = binary_images(4)
    certify = lambda images, smoothing=SMALL, key=0: (
        smooth_certify(linear, images, smoothing, key=jr.key(key)).radii
    )
    radii = certify(images)
    assert (radii > 0).any()
    assert (certify(images) == radii).all()
    assert (certify(images, key=1) != radii).any()
    batch = np.concatenate([images[:2], binary_images(3, seed=1)])
    assert (certify(batch)[:2] == radii[:2]).all()
    other = dataclasses.replace(SMALL, batch_size=7)
    assert (certify(images, other) == radii).all()
    # The same image at another place has noise of its own.
    same = np.repeat(images[:1], 8, axis=0)
    assert len(set(certify(same))) > 2


def test_ragged_counts_and_one_compilation_for_all():
    traces = []

    def model(x):
        traces.append(x.shape)
        return linear(x)

    image = binary_images(1)[0]
    sums = [votes(model, image, jr.key(0), n, 7).sum() for n in (1, 6, 7, 8, 23, 700)]
    assert sums == [1, 6, 7, 8, 23, 700]
    once = len(traces)
    votes(model, image, jr.key(1), 24, 7)
    assert len(traces) == once == 1
    # A sample's noise does not depend on how many there are: one more, one vote more.
    few, more = (votes(model, image, jr.key(0), n, 7) for n in (50, 51))
    assert sorted(more - few) == [0, 0, 1]


@pytest.mark.slow
def test_adaptive_and_unconstrained_models(getkey):
    model = small_model(getkey(), "free", solver=jnode.Solver("heun"))
    assert jnode.certify.refusal(model) is not None
    images = np.asarray(jr.uniform(jr.key(2), (3, 8, 8, 1)))
    smoothing = Smoothing(0.01, n0=20, n=200, batch_size=50)
    found = smooth_certify(model, images, smoothing, key=getkey())
    # With little noise the classes are those of the clean images; fixed steps give the
    # same and compile sooner.
    fixed = model.with_solver(jnode.Solver("heun", steps=8))
    logits = jax.jit(jax.vmap(fixed))(jnp.asarray(images))
    assert found.predictions.tolist() == jnp.argmax(logits, axis=1).tolist()
    assert (found.radii > 0.01).all()


def test_in_double_precision_too(x64):
    found = smooth_certify(linear, binary_images(3), SMALL, key=jr.key(0))
    with jax.enable_x64(False):
        single = smooth_certify(linear, binary_images(3), SMALL, key=jr.key(0))
    assert (found.radii == single.radii).all()


@pytest.mark.parametrize("progress", [False, True])
def test_progress(capsys, progress):
    smooth_certify(linear, binary_images(2), SMALL, key=jr.key(0), progress=progress)
    assert ("2/2" in capsys.readouterr().err) == progress


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(sigma=0.0), "sigma must lie between 0.001 and 1000 pixel units, not 0.0"),
        (dict(sigma=float("nan")), "sigma must .* not nan"),
        (dict(sigma=1e6), "sigma must .* not 1000000.0"),
        (dict(n0=0), "n0 must be an integer from 1 to 1000000000, not 0"),
        (dict(n=-5), "n must be an integer from 1 to .* not -5"),
        (dict(n=10**10), "n must be an integer from 1 to .* not 10000000000"),
        (dict(batch_size=True), "batch_size must be an integer .* not True"),
        (dict(alpha=0.0), "alpha must lie strictly between 0 and 1, not 0.0"),
        (dict(alpha=1.0), "alpha must lie strictly between 0 and 1, not 1.0"),
        (dict(n=9), "n must be at least 10 for alpha=0.001, not 9"),
    ],
)
def test_bad_smoothings(options, message):
    with pytest.raises(ValueError, match=message):
        Smoothing(**{"sigma": 0.5, **options})


def test_the_fewest_samples_that_certify():
    for alpha, n in ((0.001, 10), (0.25, 3), (0.5, 2)):
        assert Smoothing(1.0, n=n, alpha=alpha).largest_radius > 0
        with pytest.raises(ValueError, match=f"n must be at least {n} "):
            Smoothing(1.0, n=n - 1, alpha=alpha)


@pytest.mark.parametrize("function", [smooth_certify, smooth_predict])
@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(smoothing=0.5), TypeError, "smoothing must be a jnode.certify.Smoothing"),
        (dict(model=3), TypeError, "model must be a function of one image, not int"),
        (dict(model=lambda x: x), ValueError, "logits .* leave jax.vmap"),
        (dict(model=lambda x: x[0, 0]), ValueError, "at least 2 classes"),
        (dict(model=lambda x: (x, x)), ValueError, "at least 2 classes"),
        (dict(images=np.zeros(SHAPE, np.float32)), ValueError, "images must have"),
        (dict(images=np.full((1, *SHAPE), 2.0)), ValueError, "images must lie in"),
        (dict(images=np.full((1, *SHAPE), np.nan)), ValueError, "no NaN"),
        (dict(images=np.zeros((1, *SHAPE), np.uint8)), TypeError, "must be floats"),
        (dict(images=np.zeros((0, *SHAPE))), ValueError, "at least one image"),
    ],
)
def test_bad_arguments(function, change, error, message):
    good = dict(model=linear, images=binary_images(1), smoothing=Smoothing(0.5))
    # Unwrapped: here the annotations are checked first, for users they are not.
    with pytest.raises(error, match=message):
        inspect.unwrap(function)(**{**good, **change}, key=jr.key(0))


def test_images_of_another_shape_than_the_model_takes(getkey):
    with pytest.raises(ValueError, match="must each have the shape"):
        smooth_certify(
            small_model(getkey()), binary_images(1), Smoothing(0.5), key=getkey()
        )
