"""The Square Attack: its schedule, its budget, and what no gradient shows."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jnode import attacks
from jnode.attacks.norms import size
from jnode.attacks.square import _bump, margin, shares
from jnode.evaluation import evaluate
from tests.helpers import small_model


def test_schedule():
    found = shares(10_000)
    at = {0: 1, 10: 1, 11: 2, 50: 2, 51: 4, 201: 8, 501: 16, 2000: 32, 9000: 512}
    for query, divisor in at.items():
        assert found[query] == pytest.approx(0.8 / divisor)
    assert (shares(5000) == found[::2]).all()


def test_margin():
    logits = jnp.asarray([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    assert margin(logits, jnp.asarray([1, 2])).tolist() == [1.0, -1.0]


def test_bumps_have_norm_1_in_their_window(getkey):
    corner = [jnp.asarray([0, 2]), jnp.asarray([1, 4])]
    bump = _bump((2, 9, 10, 3), corner, jnp.asarray(5), getkey())
    assert jnp.abs(jnp.sum(bump**2, axis=(1, 2)) - 1).max() < 1e-5
    assert (bump[0, 5:] == 0).all() and (bump[1, :2] == 0).all()
    assert (bump[0, :, 0] == 0).all() and (bump[1, :, 9] == 0).all()


@pytest.fixture(scope="module")
def problem():
    model = attacks.Batched(small_model(jr.key(0), lipschitz=2.0).bake())
    images = jr.uniform(jr.key(1), (48, 8, 8, 1))
    return model, images, jnp.argmax(model(images), axis=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nearly_as_strong_as_pgd(problem, norm):
    model, images, labels = problem
    epsilon = 0.02 if norm == "linf" else 0.12
    specs = [f"pgd:{norm}:{epsilon}:40", f"square:{norm}:{epsilon}:1000"]
    found = evaluate(
        model, images, labels, [attacks.parse(s) for s in specs], progress=False
    ).summary
    pgd, square = [row["robust_accuracy"] for row in found["attacks"]]
    assert 0.1 < pgd < 0.9
    assert pgd - 0.1 <= square <= pgd + 0.15


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_budget_and_determinism(problem, norm):
    model, images, labels = problem
    attack = attacks.make("square", epsilon=0.3, norm=norm, steps=50, restarts=2)
    run = jax.jit(lambda key: attack(model, images, labels, key=key))
    first = run(jr.key(0))
    assert (first == run(jr.key(0))).all()
    assert first.min() >= 0 and first.max() <= 1
    assert size(first - images, norm).max() <= 0.3 + 1e-6
    moved = jnp.any(first != images, axis=(1, 2, 3))
    assert moved.mean() > 0.5
    assert (jnp.argmax(model(first), axis=1)[moved] != labels[moved]).all()


def test_breaks_what_hides_its_gradient(problem):
    model, images, labels = problem
    # A steep staircase in front: the gradient is zero almost everywhere.
    front = lambda x: model(jnp.round(x * 64) / 64)
    labels = jnp.argmax(front(images), axis=1)
    specs = ["pgd:linf:0.03:20", "square:linf:0.03:1000"]
    found = evaluate(
        front, images, labels, [attacks.parse(s) for s in specs], progress=False
    ).summary
    pgd, square = [row["robust_accuracy"] for row in found["attacks"]]
    assert square < pgd - 0.2
    assert np.any(["zero gradients" in flag for flag in found["flags"]])
