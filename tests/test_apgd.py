"""Auto-PGD: schedule, losses, strength, budgets."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode import attacks
from jnode.attacks.apgd import checkpoints
from jnode.attacks.losses import (
    cross_entropy,
    difference_of_logits_ratio,
    targeted_ratio,
)
from jnode.attacks.norms import size
from jnode.evaluation import evaluate
from tests.helpers import slow_but, small_model

NAMES = ["apgd-ce", "apgd-dlr", "apgd-t"]


def test_checkpoints_are_those_of_the_paper():
    # Croce & Hein (2020): p = 0, 0.22, then steps that shrink by 0.03 to 0.06.
    found = np.flatnonzero(checkpoints(100)) + 1
    shares = [0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    expected = [round(100 * p) for p in shares[1:] if p <= 1]
    assert found.tolist() == expected
    assert checkpoints(1).tolist() == [1]
    assert (
        np.cumsum(checkpoints(30))[np.flatnonzero(checkpoints(30))]
        == np.flatnonzero(checkpoints(30)) + 1
    ).all()


def test_ratios_against_the_definition(getkey):
    logits = jr.normal(getkey(), (20, 6))
    labels = jr.randint(getkey(), (20,), 0, 6)
    targets = (labels + 2) % 6
    dlr = difference_of_logits_ratio(logits, labels)
    aimed = targeted_ratio(logits, labels, targets)
    for z, y, t, a, b in zip(
        *map(np.asarray, (logits, labels, targets, dlr, aimed)), strict=True
    ):
        s = np.sort(z)[::-1]
        assert a == pytest.approx(-(z[y] - np.delete(z, y).max()) / (s[0] - s[2]), 1e-3)
        scale = s[0] - (s[2] + s[3]) / 2
        assert b == pytest.approx(-(z[y] - z[t]) / scale, 1e-3)
    # Neither changes with scale and offset.
    moved = difference_of_logits_ratio(7 * logits + 3, labels)
    assert jnp.abs(moved - dlr).max() < 1e-4


@pytest.fixture(scope="module")
def problem():
    model = jnode.batched(small_model(jr.key(0), lipschitz=2.0).bake())
    images = jr.uniform(jr.key(1), (48, 8, 8, 1))
    return model, images, jnp.argmax(model(images), axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_weaker_than_pgd(problem, norm):
    model, images, labels = problem
    epsilon = 0.02 if norm == "linf" else 0.12
    specs = [f"pgd:{norm}:{epsilon}:40:2"]
    specs += [
        f"{name}:{norm}:{epsilon}:40:{3 if name[-1] == 't' else 1}" for name in NAMES
    ]
    found = evaluate(
        model, images, labels, [attacks.parse(s) for s in specs], progress=False
    ).summary["attacks"]
    pgd, *others = [row["robust_accuracy"] for row in found]
    assert 0.1 < pgd < 0.9
    assert all(other <= pgd + 1 / 48 for other in others)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", slow_but(NAMES, "apgd-t"))
def test_budget_determinism_and_success(problem, name, norm):
    model, images, labels = problem
    wrong = labels.at[:5].set((labels[:5] + 1) % 4)
    attack = attacks.make(name, steps=10, restarts=2)
    budget = attacks.Budget(norm, 0.3)
    run = jax.jit(lambda key: attack(model, images, wrong, budget, key=key))
    first = run(jr.key(0))
    assert (first == run(jr.key(0))).all()
    assert first.min() >= 0 and first.max() <= 1
    assert size(first - images, norm).max() <= 0.3 + 1e-6
    # What is wrong already is left alone; elsewhere the loss is the largest.
    assert (first[:5] == images[:5]).all()
    success = jnp.argmax(model(first), axis=1) != wrong
    assert success[5:].mean() > 0.5
    higher = cross_entropy(model(first), wrong) > cross_entropy(model(images), wrong)
    assert (higher | success).mean() > 0.9


def test_too_few_classes_are_named():
    two = lambda images: jnp.stack([images.sum((1, 2, 3))] * 2, axis=1)
    images, labels = jnp.ones((2, 3, 3, 1)), jnp.zeros(2, int)
    for name, least in (("apgd-dlr", 3), ("apgd-t", 4)):
        attack, budget = attacks.make(name), attacks.Budget("linf", 0.1)
        with pytest.raises(ValueError, match=f"at least {least} classes"):
            attack(two, images, labels, budget, key=jr.key(0))
