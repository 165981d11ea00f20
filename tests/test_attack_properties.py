"""What holds for every attack, on a small network that is a plain callable."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jnode import attacks
from jnode.attacks import Budget
from jnode.attacks.loop import fitted
from jnode.attacks.losses import cross_entropy, prediction
from jnode.attacks.norms import NORMS, size
from jnode.attacks.registry import ATTACKS, make
from tests.helpers import slow_but

SHAPE, CLASSES, BATCH = (4, 4, 1), 4, 12


class Network(eqx.Module):
    """One hidden layer."""

    first: jax.Array
    second: jax.Array

    def __call__(self, images):
        x = images.reshape(len(images), -1) - 0.5
        return jnp.tanh(x @ self.first) @ self.second


MODEL = Network(jr.normal(jr.key(0), (16, 8)), 3 * jr.normal(jr.key(1), (8, CLASSES)))
FEW = {"steps": 4, "restarts": 2}
OPTIONS = dict.fromkeys(
    ("pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t"), FEW
) | {"square": {"steps": 20, "restarts": 2}}
CASES = [(name, norm) for name in ATTACKS for norm in NORMS]


@functools.cache
def compiled():
    return eqx.filter_jit(lambda attack, *rest, key: attack(MODEL, *rest, key=key))


@pytest.mark.parametrize(("name", "norm"), slow_but(CASES, *CASES[::3], unpack=True))
@settings(deadline=None, max_examples=4, derandomize=True, database=None)
@given(seed=st.integers(0, 2**16), epsilon=st.floats(0.0, 0.5))
def test_budget_range_determinism_and_mask(name, norm, seed, epsilon):
    keys = jr.split(jr.key(seed), 3)
    images = jr.uniform(keys[0], (BATCH, *SHAPE))
    # Rounded outwards, so that pixels of exactly 0 and 1 are met.
    images = jnp.clip(1.5 * images - 0.25, 0.0, 1.0)
    labels = jr.randint(keys[1], (BATCH,), 0, CLASSES)
    # Half of it for the second half of the images.
    each = epsilon * jnp.where(jnp.arange(BATCH) < BATCH // 2, 1, 0.5)
    attack, budget = make(name, **OPTIONS.get(name, {})), Budget(norm, each)
    found = compiled()(attack, images, labels, budget, key=keys[2])
    assert found.min() >= 0 and found.max() <= 1
    assert (size(found - images, norm) <= each + 1e-6).all()
    assert (found == compiled()(attack, images, labels, budget, key=keys[2])).all()
    # Labels do not leak: what is wrong already comes back untouched.
    wrong = prediction(MODEL(images)) != labels
    assert (found == images)[wrong].all()


@pytest.fixture(scope="module")
def problem():
    images = jr.uniform(jr.key(7), (40, *SHAPE))
    labels = jnp.argmax(MODEL(images), axis=1).at[:4].add(1) % CLASSES
    return images, labels


@pytest.mark.parametrize("name", slow_but(["pgd", "apgd-ce"], "apgd-ce"))
def test_best_loss_never_falls_with_more_steps(problem, name):
    """Of what is not misclassified; the same key starts the same way."""
    images, labels = problem
    last = None
    for steps in (1, 3, 9):
        # The step length of PGD is the budget over the steps.
        epsilon = 1e-3 if name == "apgd-ce" else 1e-4 * steps
        call = make(name, steps=steps), images, labels, Budget("l2", epsilon)
        found = compiled()(*call, key=jr.key(0))
        loss = np.asarray(cross_entropy(MODEL(found), labels))
        assert last is None or (loss >= last - 1e-6).all()
        last = loss
    clean = cross_entropy(MODEL(images), labels)
    assert (last[4:] > clean[4:]).all()


def run(problem, chosen, **options):
    images, labels = problem
    return attacks.run(
        MODEL,
        images,
        labels,
        chosen,
        key=jr.key(0),
        **{"batch_size": 16, "progress": False} | options,
    )


def test_ensemble_is_the_worst_case_and_can_be_recomputed(problem):
    images, labels = problem
    three = (
        attacks.PGD(steps=4),
        attacks.APGDT(steps=8, restarts=3),
        attacks.Square(steps=50),
    )
    chosen = [(attack, Budget("linf", 0.05)) for attack in three]
    found = run(problem, chosen)
    assert 0.1 < found.robust_accuracy < 0.9
    assert (found.first_success[:4] == attacks.MISCLASSIFIED).all()
    assert (found.adversarial[:4] == np.asarray(images[:4])).all()
    # From the stored images alone.
    right = prediction(MODEL(jnp.asarray(found.adversarial))) == labels
    assert (np.asarray(right) == (found.first_success == attacks.ROBUST)).all()
    assert np.abs(found.adversarial - np.asarray(images)).max() <= 0.05 + 1e-6
    assert (np.logical_and.reduce(found.robust) == found.robust[-1]).all()
    # Each by itself misleads no more than all.
    for attack in chosen:
        assert run(problem, [attack]).robust_accuracy >= found.robust_accuracy
    assert len(set(found.first_success.tolist())) >= 3
    again = run(problem, chosen)
    assert (again.adversarial == found.adversarial).all()


def test_one_compilation_whatever_is_left(problem):
    """Another budget, a ragged rest, another target: nothing is compiled anew."""
    traces = []

    def counting(x):
        traces.append(x.shape)
        return MODEL(x)

    images, labels = problem
    attack = attacks.APGDT(steps=5, restarts=3)
    call = lambda epsilon: attacks.run(
        counting,
        images,
        labels,
        [(attack, Budget("linf", epsilon))],
        key=jr.key(0),
        batch_size=16,
        progress=False,
    )
    call(0.03)
    first = len(traces)
    call(0.05)
    assert len(traces) == first > 0
    assert set(traces) == {(16, *SHAPE)}


def test_clean_logits_are_computed_once(problem):
    """Then each attack asks for what it needs, and its judge once more."""
    asked = []

    def counting(x):
        jax.debug.callback(lambda: asked.append(1))
        return MODEL(x)

    images, labels = problem
    few = {"batch_size": 16, "key": jr.key(0), "progress": False}
    fgsm = attacks.Trial(attacks.FGSM(), Budget("linf", 1e-6))
    noise = attacks.Trial(attacks.GaussianNoise(1e-6))
    for chosen, expected in (([], 1), ([fgsm], 3), ([fgsm, noise], 4)):
        asked.clear()
        found = attacks.run(counting, images[4:20], labels[4:20], chosen, **few)
        jax.effects_barrier()
        assert len(asked) == expected
        assert (found.predictions == np.asarray(labels[4:20])).all()


def test_versions_of_autoattack():
    budget = Budget("l2", 0.1)
    assert all(trial.budget is budget for trial in attacks.autoattack(budget))
    names = lambda **options: [
        (a.name, int(a.steps), a.restarts)
        for a, _ in attacks.autoattack(budget, **options)
    ]
    standard = [
        ("apgd-ce", 100, 1),
        ("apgd-t", 100, 9),
        ("fab-t", 100, 9),
        ("square", 5000, 1),
    ]
    assert names() == names(version="standard") == standard
    assert names(version="plus") == [
        ("apgd-ce", 100, 5),
        ("apgd-dlr", 100, 5),
        ("fab", 100, 5),
        ("square", 5000, 1),
        ("apgd-t", 100, 9),
        ("fab-t", 100, 9),
    ]
    assert names(version="rand") == [("apgd-ce", 100, 1), ("apgd-dlr", 100, 1)]
    # Too few classes for some of the losses.
    assert names(classes=3) == [standard[0], ("fab-t", 100, 2), standard[3]]
    refused: list[tuple[dict[str, Any], str]] = [
        ({"version": "fast"}, "version must be one of standard, plus, rand,"),
        ({"classes": 1}, "classes must be at least 2"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            attacks.autoattack(budget, **options)


def test_expectation_over_transformation(problem):
    """Noise as large as the signal: the mean gradient finds what one draw does not."""
    images, labels = problem
    images, labels = images[4:], labels[4:]

    def noisy(x, key):
        return MODEL(x + 0.5 * jr.normal(key, x.shape))

    @eqx.filter_jit
    def gain(model, judge):
        attack, given = attacks.APGDCE(steps=10), jnp.argmax(model(images), axis=1)
        found = attack(model, images, given, Budget("linf", 0.05), key=jr.key(0))
        loss = lambda x: cross_entropy(judge(x), labels)
        return jnp.mean(loss(found) - loss(images))

    # Judged by many draws, the same for both.
    judge = attacks.RandomModel(noisy, key=jr.key(4), draws=200)
    one, many = (
        float(gain(attacks.RandomModel(noisy, key=jr.key(3), draws=draws), judge))
        for draws in (1, 30)
    )
    assert many > one and many > 0
    calls = eqx.filter_jit(lambda model: model(images))
    assert (calls(judge) == calls(judge)).all()
    with pytest.raises(ValueError, match="draws must be"):
        attacks.RandomModel(noisy, key=jr.key(0), draws=0)


def test_smaller_batches_where_few_are_left():
    sizes = {100: 100, 76: 100, 75: 75, 51: 75, 50: 50, 39: 50, 38: 38, 1: 38}
    assert {count: fitted(100, count) for count in sizes} == sizes
    assert fitted(250, 120, multiple=8) == 128 and fitted(12, 3) == 12
