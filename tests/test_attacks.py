"""Attacks on linear models, whose optimum is known, and the evaluation around them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode import attacks
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


def optimum(model, images, epsilon, norm):
    """The share that stands under the best attack, exactly (no clipping is met)."""
    score = jnp.abs(jnp.einsum("bhwc,hwc->b", images - 0.5, model.weight))
    dual = (
        jnp.sum(jnp.abs(model.weight))
        if norm == "linf"
        else jnp.linalg.norm(model.weight.ravel())
    )
    return float((score > epsilon * dual).mean())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_optimal_on_a_linear_model(problem, name, norm):
    model, images, labels = problem
    epsilon = 0.05 if norm == "linf" else 0.15
    attack = attacks.make(name, epsilon=epsilon, norm=norm, steps=40)
    found = evaluate(model, images, labels, [attack], progress=False).summary
    best = optimum(model, images, epsilon, norm)
    assert 0.1 < best < 0.9
    assert abs(found["attacks"][0]["robust_accuracy"] - best) <= 1 / 64
    assert found["clean_accuracy"] == 1.0
    assert [f.split(":")[0] for f in found["flags"]] == ["too few classes"]


def test_keys_of_images_make_attacks_that_know_no_batch_mates(problem):
    """As adversarial training has it: what becomes of an image is its own affair."""
    model, images, labels = problem
    labels = labels.at[3].set(1 - labels[3])
    attack, keys = attacks.PGD(0.05, steps=5), jr.split(jr.key(0), len(images))
    found = attack.from_keys(model, images, labels, keys)
    few = slice(2, 7)
    alone = attack.from_keys(model, images[few], labels[few], keys[few])
    np.testing.assert_allclose(found[few], alone, atol=1e-6)
    assert float(jnp.max(jnp.abs(found - images))) <= 0.05 + 1e-6
    np.testing.assert_array_equal(found[3], images[3])  # wrong before
    right = np.mean(np.argmax(model(found), 1) == np.asarray(labels))
    assert right < np.mean(np.argmax(model(images), 1) == np.asarray(labels))


@pytest.mark.parametrize("spec", ["fgsm:linf:0.3", "pgd:linf:0.3:5:2", "pgd:l2:2.0:5"])
def test_budget_range_and_determinism(problem, spec):
    model, images, labels = problem
    attack = attacks.parse(spec)
    one = eqx.filter_jit(attack)(model, images, labels, key=jr.key(1))
    two = eqx.filter_jit(attack)(model, images, labels, key=jr.key(1))
    assert (one == two).all()
    assert one.min() >= 0 and one.max() <= 1
    assert size(one - images, attack.norm).max() <= attack.epsilon + 1e-6
    if "pgd" in spec:
        other = eqx.filter_jit(attack)(model, images, labels, key=jr.key(2))
        assert (one != other).any()


def test_another_budget_compiles_nothing_anew(problem):
    model, images, labels = problem
    traces = []

    def counting(x):
        traces.append(1)
        return model(x)

    run = eqx.filter_jit(lambda a, x: a(counting, x, labels, key=jr.key(0)))
    run(attacks.make("pgd", epsilon=0.1, steps=3), images)
    first = len(traces)
    run(attacks.make("pgd", epsilon=0.2, steps=7), images)
    assert first == len(traces) > 0


def test_another_tolerance_compiles_nothing_anew(getkey):
    solver = jnode.Solver("bosh3", rtol=1e-1, atol=1e-2)
    finer = jnode.Solver("bosh3", rtol=1e-5, atol=1e-6)
    model = small_model(getkey(), "ortho", solver, pieces=(2,)).bake()
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
        attack = attacks.make(name, epsilon=0.0, steps=2)
        assert (attack(model, images, labels, key=jr.key(0)) == images).all()


def test_gaussian_noise(problem):
    model, images, labels = problem
    noisy = attacks.GaussianNoise(0.1)(model, images, labels, key=jr.key(0))
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
    standing = result.outcome.standing
    together = np.logical_and.reduce(standing[1:]).mean()
    assert worst["linf", 0.05] == pytest.approx(together)
    assert worst["linf", 0.05] <= worst["linf", 0.02] <= 1
    assert result.outcome.attacked[1].shown.shape == (16, 4, 4, 1)
    # Batches of 30 leave a ragged rest of 4, which must not change the result.
    whole = evaluate(model, images, labels, chosen[2:3], batch_size=64, progress=False)
    assert whole.summary["attacks"][0]["robust_accuracy"] == standing[2].mean()


def test_wrong_predictions_never_stand(problem):
    model, images, labels = problem
    wrong = labels.at[:32].set(1 - labels[:32])
    attack = attacks.make("pgd", epsilon=0.5, steps=3)
    result = evaluate(model, images, wrong, [attack], progress=False)
    assert result.summary["clean_accuracy"] == 0.5
    assert not result.outcome.standing[0][:32].any()


def test_nan_logits_count_as_broken(problem):
    _, images, labels = problem
    model = lambda x: jnp.full((len(x), 2), jnp.nan)
    result = evaluate(model, images, labels, [], progress=False)
    assert result.summary["clean_accuracy"] == 0


def test_flat_gradients_are_flagged(problem):
    model, images, labels = problem
    steep = lambda x: 1e4 * jnp.round(model(x) * 4)
    attack = attacks.make("pgd", epsilon=0.05, steps=5)
    result = evaluate(steep, images, labels, [attack], progress=False)
    assert any("zero gradients" in flag for flag in result.summary["flags"])


def test_attack_outside_its_budget_is_caught(problem):
    model, images, labels = problem

    class Cheat(attacks.FGSM):
        def search(self, model, images, labels, clean, *, key):
            return jnp.clip(images + 2 * self.epsilon, 0, 1)

    with pytest.raises(RuntimeError, match="left its budget"):
        evaluate(model, images, labels, [Cheat(0.1)], progress=False)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("carlini:linf:0.1", "gaussian, fgsm, pgd"),
        ("pgd:linf:-0.1", "epsilon must be at least 0"),
        ("pgd:l1:0.1", "linf, l2"),
        ("pgd:linf:0.1:0", "steps must be"),
        ("pgd:linf:0.1:4:0", "restarts must be"),
        ("pgd:linf", "must read name:norm:epsilon"),
        ("pgd:linf:big", "not a number"),
        ("pgd:linf:1/0", "not a number"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        attacks.parse(spec)


def test_fractions():
    assert attacks.parse("pgd:linf:8/255").epsilon == pytest.approx(8 / 255)
    assert attacks.parse("gaussian:50/255").epsilon == pytest.approx(50 / 255)


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
