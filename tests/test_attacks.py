"""Calls, names and budgets of attacks, and the evaluation around them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode import attacks
from jnode.attacks import Budget
from jnode.attacks.norms import size
from jnode.evaluation import evaluate
from tests.helpers import small_model


class Linear(eqx.Module):
    """Two classes: the sign of an inner product."""

    weight: jax.Array

    def __call__(self, images):
        score = jnp.einsum("bhwc,hwc->b", images - 0.5, self.weight)
        return jnp.stack([-score, score], axis=1)


@pytest.fixture
def problem(getkey):
    model = Linear(jr.normal(getkey(), (4, 4, 1)))
    images = 0.5 + 0.2 * jr.uniform(getkey(), (64, 4, 4, 1), minval=-1.0)
    return model, images, jnp.argmax(model(images), axis=1)


def test_keys_of_images_make_attacks_independent_of_the_batch(problem):
    """As adversarial training needs it: the rest of the batch changes no result."""
    model, images, labels = problem
    labels = labels.at[3].set(1 - labels[3])
    attack, keys = attacks.PGD(steps=5), jr.split(jr.key(0), len(images))
    budget, few = Budget("linf", 0.05), slice(2, 7)
    found = attack.from_keys(model, images, labels, budget, keys)
    alone = attack.from_keys(model, images[few], labels[few], budget, keys[few])
    np.testing.assert_allclose(found[few], alone, atol=1e-6)
    assert float(jnp.max(jnp.abs(found - images))) <= 0.05 + 1e-6
    np.testing.assert_array_equal(found[3], images[3])  # wrong before
    right = np.mean(np.argmax(model(found), 1) == np.asarray(labels))
    assert right < np.mean(np.argmax(model(images), 1) == np.asarray(labels))


@pytest.mark.parametrize("spec", ["fgsm:linf:0.3", "pgd:linf:0.3:5:2", "pgd:l2:2.0:5"])
def test_budget_range_and_determinism(problem, spec):
    model, images, labels = problem
    attack, budget = attacks.parse(spec)
    assert isinstance(attack, attacks.AbstractAttack) and budget is not None
    call = eqx.filter_jit(lambda key: attack(model, images, labels, budget, key=key))
    one, two = call(jr.key(1)), call(jr.key(1))
    assert (one == two).all()
    assert one.min() >= 0 and one.max() <= 1
    assert size(one - images, budget.norm).max() <= budget.epsilon + 1e-6
    if "pgd" in spec:
        assert (one != call(jr.key(2))).any()


def test_another_budget_compiles_nothing_anew(problem):
    model, images, labels = problem
    traces = []

    def counting(x):
        traces.append(1)
        return model(x)

    jitted = eqx.filter_jit(lambda a, b, x: a(counting, x, labels, b, key=jr.key(0)))
    eager = lambda a, b, x: a(counting, x, labels, b, key=jr.key(0))
    # For eager calls a number and an array are one program too.
    each = np.linspace(0, 0.3, len(images))
    for call, epsilons in ((jitted, (0.1, 0.2)), (eager, (0.1, 0.2, each))):
        traces.clear()
        call(attacks.PGD(steps=3), Budget("linf", 0.3), images)
        first = len(traces)
        for epsilon in epsilons:
            call(attacks.PGD(steps=7), Budget("linf", epsilon), images)
        assert first == len(traces) > 0


def test_another_tolerance_compiles_nothing_anew(getkey):
    solver = jnode.Solver("bosh3", rtol=1e-1, atol=1e-2)
    finer = jnode.Solver("bosh3", rtol=1e-5, atol=1e-6)
    model = small_model(getkey(), "ortho", solver, segments=(2,)).bake()
    images = jr.uniform(getkey(), (3, 8, 8, 1))
    traces = []

    @eqx.filter_jit
    def run(model, x):
        traces.append(1)
        return model(x)

    fine = model.with_solver(finer)
    for one in (model, fine):
        logits = run(jnode.batched(one), images)
        expected = eqx.filter_jit(lambda m, x: jnode.batched(m)(x))(one, images)
        np.testing.assert_allclose(logits, expected, atol=1e-6)
    assert len(traces) == 1
    coarse = run(jnode.batched(model), images)
    assert float(jnp.max(jnp.abs(coarse - logits))) > 1e-5


def test_zero_epsilon_changes_nothing(problem):
    model, images, labels = problem
    for name in ("fgsm", "pgd"):
        attack, budget = attacks.make(name, steps=2), Budget("linf", 0)
        assert (attack(model, images, labels, budget, key=jr.key(0)) == images).all()


def test_gaussian_noise(problem):
    _, images, _ = problem
    noisy = attacks.GaussianNoise(0.1)(images, key=jr.key(0))
    assert float(jnp.std(noisy - images)) == pytest.approx(0.1, rel=0.1)
    assert noisy.min() >= 0 and noisy.max() <= 1


def test_worst_case_is_per_sample_and_monotone(problem):
    model, images, labels = problem
    specs = ("gaussian:0.2", "pgd:linf:0.02:5", "fgsm:linf:0.05", "pgd:linf:0.05:5")
    chosen = [attacks.parse(spec) for spec in specs]
    result = evaluate(model, images, labels, chosen, batch_size=30, progress=False)
    worst = {
        (r["norm"], r["epsilon"]): r["robust_accuracy"]
        for r in result.summary["worst_case"]
    }
    robust = result.outcome.robust
    together = np.logical_and.reduce(robust[1:]).mean()
    assert worst["linf", 0.05] == pytest.approx(together)
    assert worst["linf", 0.05] <= worst["linf", 0.02] <= 1
    assert result.outcome.attacked[1].shown.shape == (16, 4, 4, 1)
    # Batches of 30 leave a ragged rest of 4, which must not change the result.
    whole = evaluate(model, images, labels, chosen[2:3], batch_size=64, progress=False)
    assert whole.summary["attacks"][0]["robust_accuracy"] == robust[2].mean()


def test_wrong_predictions_are_never_robust(problem):
    model, images, labels = problem
    wrong = labels.at[:32].set(1 - labels[:32])
    trial = attacks.PGD(steps=3), Budget("linf", 0.5)
    result = evaluate(model, images, wrong, [trial], progress=False)
    assert result.summary["clean_accuracy"] == 0.5
    assert not result.outcome.robust[0][:32].any()


def test_nan_logits_count_as_misclassified(problem):
    _, images, labels = problem
    model = lambda x: jnp.full((len(x), 2), jnp.nan)
    result = evaluate(model, images, labels, [], progress=False)
    assert result.summary["clean_accuracy"] == 0


def test_flat_gradients_are_flagged(problem):
    model, images, labels = problem
    steep = lambda x: 1e4 * jnp.round(model(x) * 4)
    trial = attacks.PGD(steps=5), Budget("linf", 0.05)
    result = evaluate(steep, images, labels, [trial], progress=False)
    assert any("zero gradients" in flag for flag in result.summary["flags"])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_one_pixel_without_a_gradient(norm):
    """No attack becomes a NaN, of whatever shape the images are."""
    flat = lambda x: jnp.tile(jnp.asarray([1.0, 0.0]), (len(x), 1)) + 0 * x[:, 0, 0]
    images = np.full((2, 1, 1, 1), 0.5, np.float32)
    trial = attacks.PGD(steps=5), Budget(norm, 0.1)
    result = evaluate(flat, images, np.zeros(2, int), [trial], progress=False)
    assert result.summary["attacks"][0]["robust_accuracy"] == 1


def test_attack_outside_its_budget_is_caught(problem):
    model, images, labels = problem

    class Cheat(attacks.FGSM):
        def search(self, model, images, goal, clean, budget, *, key):
            far = jnp.where(jnp.arange(len(images)) == 40, 2.0, 1.0) * budget.epsilon
            return jnp.clip(images + far[:, None, None, None], 0, 1)

    # Of one image among many, with an epsilon of its own or that of all.
    for epsilon in (0.1, np.full(64, 0.1)):
        with pytest.raises(RuntimeError, match="fgsm left its budget of 0.1 in linf"):
            trial = Cheat(), Budget("linf", epsilon)
            attacks.run(model, images, labels, [trial], key=jr.key(0), progress=False)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("carlini:linf:0.1", "gaussian, fgsm, pgd"),
        ("pgd:linf:-0.1", "epsilon must be at least 0"),
        ("pgd:l3:0.1", "linf, l2, l1"),
        ("pgd:linf:0.1:0", "steps must be"),
        ("pgd:linf:0.1:4:0", "restarts must be"),
        ("pgd:linf", "must read name:norm:epsilon"),
        ("gaussian:linf:0.1", "gaussian:sigma"),
        ("gaussian:-0.1", "sigma must be a number of at least 0"),
        ("pgd:linf:big", "0.5 or 36/255, not 'big'"),
        ("pgd:linf:1/0", "0.5 or 36/255, not '1/0'"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        attacks.parse(spec)


def test_fractions():
    assert attacks.parse("pgd:linf:8/255").epsilon == pytest.approx(8 / 255)
    assert attacks.parse("gaussian:50/255").epsilon == pytest.approx(50 / 255)


def test_trials_are_pairs(problem, unchecked):
    model, images, labels = problem
    wrong: list[tuple[Any, str]] = [
        (attacks.PGD(), "pairs of an attack and its budget"),
        ((attacks.PGD(), 0.1), "budget must be a jnode.attacks.Budget"),
        (attacks.Trial(attacks.PGD()), "budget must be a jnode.attacks.Budget"),
        ((Budget("linf", 0.1), attacks.PGD()), "must begin with an attack"),
        ((attacks.GaussianNoise(0.1), Budget("linf", 0.1)), "must have no budget"),
    ]
    for trial, message in wrong:
        for ask in (attacks.run, evaluate):
            key: dict = {"key": jr.key(0)} if ask is attacks.run else {}
            with pytest.raises(TypeError, match=message):
                ask(model, images, labels, [trial], progress=False, **key)
    each = attacks.PGD(), Budget("linf", np.full(64, 0.1))
    with pytest.raises(ValueError, match="one number for all images"):
        evaluate(model, images, labels, [each], progress=False)


def test_an_epsilon_of_each_image_in_run(problem):
    """As many runs of one image each; a later trial spares image by image."""
    model, images, labels = problem
    epsilon = np.linspace(0.001, 0.1, len(images))
    trials = [
        (attacks.FGSM(), Budget("linf", epsilon)),
        (attacks.FGSM(), Budget("linf", epsilon[::-1].copy())),
    ]
    found = attacks.run(
        model, images, labels, trials, key=jr.key(0), batch_size=20, progress=False
    )
    for budget, robust in zip(trials, found.robust, strict=True):
        moved = budget[0](model, images, labels, budget[1], key=jr.key(0))
        right = np.asarray(jnp.argmax(model(moved), axis=1) == labels)
        assert (robust <= right).all()
    first, second = found.attacked
    assert len(first.samples) == 64 and 5 < len(first.successes) < 60
    spared = np.setdiff1d(np.arange(64), second.samples)
    larger = first.successes[epsilon[first.successes] <= epsilon[::-1][first.successes]]
    assert set(spared) == set(larger) and 0 < len(spared) < len(first.successes)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y: (x[0], y), ValueError, "shape"),
        (lambda x, y: (x + 1, y), ValueError, "0, 1"),
        (lambda x, y: (np.where(x == x[0, 0, 0, 0], np.nan, x), y), ValueError, "NaN"),
        (lambda x, y: ((x * 255).astype(np.uint8), y), TypeError, "to_float"),
        (lambda x, y: (x, y + 2), ValueError, "labels"),
        (lambda x, y: (x, y.astype(np.float32)), TypeError, "labels"),
        (lambda x, y: (x, y[:5]), ValueError, "one class index for each"),
    ],
)
def test_bad_input(problem, change, error, message):
    model, images, labels = problem
    images, labels = change(np.asarray(images), np.asarray(labels))
    with pytest.raises(error, match=message):
        evaluate(model, images, labels, [], progress=False)
