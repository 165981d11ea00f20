"""Attacks in L1: projections, steps and worst cases against linear programmes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.optimize import linprog

from jnode import attacks
from jnode.attacks import Budget
from jnode.attacks.norms import filled, size
from jnode.evaluation import evaluate
from tests.helpers import slow_but

SHAPE, N = (2, 3, 2), 12


class Linear(eqx.Module):
    """Logits of classes that are linear in the pixels."""

    weight: jax.Array

    def __call__(self, images):
        return images.reshape(len(images), -1) @ self.weight


def largest_product(w, x, epsilon):
    """The largest <w, d> of |d| <= epsilon in L1 with x + d in [0, 1], in float64."""
    w, x = np.asarray(w, np.float64).ravel(), np.asarray(x, np.float64).ravel()
    # d = up - down, each 0 or more and within the room.
    best = linprog(
        np.concatenate([-w, w]),
        A_ub=np.ones((1, 2 * len(w))),
        b_ub=[epsilon],
        bounds=[*((0, 1 - v) for v in x), *((0, v) for v in x)],
    )
    assert best.status == 0
    return -best.fun


def images_with_corners(key, n):
    """Pixels of which some are exactly 0 or 1, where there is no room."""
    return jnp.clip(1.6 * jr.uniform(key, (n, *SHAPE)) - 0.3, 0, 1)


@pytest.mark.parametrize("epsilon", [0.05, 0.7, 3.0, 20.0])
def test_projection_is_the_nearest_image_in_ball_and_box(epsilon):
    """The projection p of z: <z - p, c - p> <= 0 for all images c of the set."""
    keys = jr.split(jr.key(0), 2)
    images = images_with_corners(keys[0], 12)
    far = images + jnp.linspace(0, 2, 12)[:, None, None, None] * jr.normal(
        keys[1], images.shape
    )
    found = Budget("l1", epsilon).of_each(images).project(far, images)
    each = (np.asarray(a, np.float64) for a in (images, far, found))
    for x, z, p in zip(*each, strict=True):
        assert p.min() >= 0 and p.max() <= 1
        assert np.abs(p - x).sum() <= epsilon
        products = largest_product(z - p, x, epsilon) - np.sum((z - p) * (p - x))
        assert products <= 2e-4 * max(1, np.abs(z - p).sum())
    # An image of the set is its own projection, up to rounding.
    again = Budget("l1", epsilon).of_each(images).project(found, images)
    np.testing.assert_allclose(again, found, atol=1e-5)


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
@pytest.mark.parametrize("epsilon", [0.0, 1e-4, 0.3, 12.0, 500.0])
def test_no_rounding_error_leaves_the_budget(shape, epsilon):
    """Norms summed in float64 of the float32 images, without any tolerance."""
    keys = jr.split(jr.key(0), 4)
    images = jnp.clip(1.2 * jr.uniform(keys[0], (4, *shape)) - 0.1, 0, 1)
    budget = Budget("l1", epsilon).of_each(images)
    gradient = jr.normal(keys[1], images.shape)
    found = {
        "start": budget.random_start(images, keys[2]),
        "dense": budget.project(images + gradient, images),
        "equal": budget.project(images + 0.01, images),
        "tiny": budget.project(images + 1e-7 * gradient, images),
        "step": budget.step(images, gradient, budget.epsilon, images),
        "sparse": budget.step(images, gradient, budget.epsilon, images, 0.1),
    }
    for name, x in found.items():
        x = np.asarray(x, np.float64)
        moved = np.abs(x - np.asarray(images, np.float64)).sum((1, 2, 3))
        assert moved.max() <= epsilon and x.min() >= 0 and x.max() <= 1
        if name in ("dense", "step") and epsilon < 12:
            assert moved.min() >= 0.999 * epsilon
    # The check of each attack's images, which has a tolerance, sees no error either.
    budget.check("dense", images, found["dense"])


def test_random_starts_are_uniform_in_the_ball():
    """The norm of a uniform draw: P(norm <= r epsilon) = r^n, for n pixels."""
    images = jnp.full((4000, *SHAPE), 0.5)
    budget = Budget("l1", 0.4).of_each(images)
    start = budget.random_start(images, jr.key(0))
    share = size(start - images, "l1") / 0.4
    for r in (0.8, 0.9, 0.97):
        assert float((share <= r).mean()) == pytest.approx(r**N, abs=0.03)
    assert jnp.abs((start - images).mean(0)).max() < 0.003


def test_steps_fill_the_pixels_of_the_largest_weights():
    weights = jnp.asarray([3.0, 1.0, 2.0, 0.0]).reshape(1, 2, 2, 1)
    most = jnp.asarray([0.25, 1.0, 0.5, 1.0]).reshape(1, 2, 2, 1)
    fill = lambda limit, **cost: filled(weights, most, jnp.asarray([limit]), **cost)
    for limit, expected in (
        (0.1, [0.1, 0, 0, 0]),
        (0.5, [0.25, 0, 0.25, 0]),
        (1.25, [0.25, 0.5, 0.5, 0]),
        (9.0, [0.25, 1, 0.5, 0]),  # nothing else increases the product
    ):
        np.testing.assert_allclose(fill(limit).ravel(), expected, atol=1e-6)
    # To a product of 1.25: 3/4 of the first, then 1/4 from the third.
    np.testing.assert_allclose(
        fill(1.25, cost=weights).ravel(), [0.25, 0, 0.25, 0], atol=1e-6
    )


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5])
def test_a_step_is_the_best_of_its_sparsity(fraction):
    """In ball and box with no pixel moving farther than its part, by linear
    programmes."""
    keys = jr.split(jr.key(3), 2)
    images, w = images_with_corners(keys[0], 8), jr.normal(keys[1], SHAPE)
    budget, length = Budget("l1", 5.0).of_each(images), 0.6
    gradient = jnp.broadcast_to(w, images.shape)
    lengths = jnp.full(8, length)
    found = budget.step(images, gradient, lengths, images, fraction)
    part = length / max(fraction * N, 1)
    for x, d in zip(images, found - images, strict=True):
        x = np.asarray(x, np.float64).ravel()
        best = linprog(
            -np.abs(np.asarray(w, np.float64).ravel()),
            A_ub=np.ones((1, N)),
            b_ub=[length],
            bounds=[
                (0, min(part, room))
                for room in np.where(np.asarray(w).ravel() > 0, 1 - x, x)
            ],
        )
        assert float(jnp.sum(w * d)) == pytest.approx(-best.fun, rel=1e-3)


def problem(classes, n=24):
    """Images near faces of the box and a linear model."""
    model = Linear(jr.normal(jr.key(classes), (N, classes)))
    images = images_with_corners(jr.key(1), n)
    return model, images, jnp.argmax(model(images), axis=1)


@pytest.mark.parametrize(
    ("name", "close"), [("fgsm", 1e-3), ("pgd", 0.05), ("apgd-ce", 0.08)]
)
def test_the_worst_case_of_two_classes_is_known(name, close):
    """The gap between the logits falls by the optimum of the linear programme, and by
    no more."""
    model, images, labels = problem(2)
    epsilon = np.linspace(0.1, 4, len(images))
    logits = np.asarray(model(images), np.float64)
    best, shift, ways = [], [], []
    for x, y, z, e in zip(images, np.asarray(labels), logits, epsilon, strict=True):
        w = np.asarray(model.weight[:, 1 - y] - model.weight[:, y], np.float64)
        ways.append(w)
        best.append(largest_product(w, x, e))
        # No image is misclassified: attacks stop at the first one that is.
        shift.append(best[-1] + 0.5 - (z[y] - z[1 - y]))

    def safe(x):
        return model(x).at[jnp.arange(len(x)), labels].add(jnp.asarray(shift))

    attack = attacks.make(name, **({} if name == "fgsm" else {"steps": 60}))
    found = attack(safe, images, labels, Budget("l1", epsilon), key=jr.key(0))
    moved = np.asarray(found, np.float64) - np.asarray(images, np.float64)
    gained = np.sum(moved.reshape(len(ways), -1) * ways, axis=1)
    assert (gained <= np.asarray(best) + 1e-6).all()
    assert (gained >= (1 - close) * np.asarray(best) - 1e-4).all()


@pytest.mark.parametrize("name", slow_but(attacks.ATTACKS, "fgsm", "apgd-t", "fab-t"))
def test_success_beyond_the_exact_distance_in_the_box_and_never_within(name):
    """The distance to each class: the least epsilon whose optimum closes the gap."""
    model, images, labels = problem(4)
    logits, weight = np.asarray(model(images), np.float64), np.asarray(model.weight)

    def distance(i):
        """By bisection, to the nearest class."""
        y = int(labels[i])
        low, high = 0.0, float(N)
        for _ in range(20):
            middle = (low + high) / 2
            reached = any(
                largest_product(weight[:, c] - weight[:, y], images[i], middle)
                > logits[i, y] - logits[i, c]
                for c in range(4)
                if c != y
            )
            low, high = (low, middle) if reached else (middle, high)
        return low

    images, labels, logits = images[:8], labels[:8], logits[:8]
    exact = np.asarray([distance(i) for i in range(8)])
    assert (exact > 0).all()
    counts = {"fgsm": {}, "apgd-t": {"restarts": 3}, "fab-t": {"restarts": 3}}
    options = counts.get(name, {"restarts": 2}) | ({"steps": 60} if counts else {})
    attack = attacks.make(name, **options)
    for share, reached in ((0.995, False), (1.3, True)):
        budget = Budget("l1", share * exact)
        found = attack(model, images, labels, budget, key=jr.key(0))
        success = np.asarray(jnp.argmax(model(found), axis=1) != labels)
        if not reached:
            assert not success.any()
        elif name in ("apgd-t", "fab", "fab-t"):
            assert success.mean() >= 0.85
    # The weaker ones reach farther images.
    budget = Budget("l1", 4 * exact)
    found = attack(model, images, labels, budget, key=jr.key(0))
    assert np.mean(np.asarray(jnp.argmax(model(found), axis=1) != labels)) >= 0.5


def test_fab_finds_the_distance_in_the_box():
    """Towards one of two classes: the change of the linear programme, at least cost."""
    model, images, labels = problem(2)
    attack = attacks.FABT(steps=40, restarts=1)
    found, away = attack.nearest(model, images, labels, "l1")
    np.testing.assert_allclose(away, size(found - images, "l1"), rtol=1e-5)
    logits = np.asarray(model(images), np.float64)
    seen = 0
    for x, y, z, d in zip(images, np.asarray(labels), logits, away, strict=True):
        w = np.asarray(model.weight[:, 1 - y] - model.weight[:, y], np.float64)
        gap, x = z[y] - z[1 - y], np.asarray(x, np.float64).ravel()
        best = linprog(
            np.ones(2 * N),
            A_eq=np.concatenate([w, -w])[None],
            b_eq=[gap],
            bounds=[*((0, 1 - v) for v in x), *((0, v) for v in x)],
        )
        if best.status == 0:
            seen += 1
            assert best.fun * (1 - 1e-4) - 1e-5 <= float(d) <= 1.03 * best.fun + 2e-3
        else:
            assert np.isinf(d)
    assert seen > 15


def test_the_ensemble_runs_in_l1():
    """AutoAttack, with epsilons of each image; an L1 ball lies in the L2 ball."""
    model, images, labels = problem(5)
    trials = attacks.autoattack(Budget("l1", 0.5), classes=5)
    fewer = [
        t._replace(
            attack=attacks.make(t.attack.name, steps=20, restarts=t.attack.restarts)
        )
        for t in trials
    ]
    result = evaluate(model, images, labels, fewer, progress=False)
    ours = result.summary["worst_case"][0]
    assert ours["norm"] == "l1" and 0 < ours["robust_accuracy"] < 1
    wider = [(attacks.APGDT(steps=20, restarts=4), Budget("l2", 0.5))]
    in_l2 = evaluate(model, images, labels, wider, progress=False).summary
    assert in_l2["worst_case"][0]["robust_accuracy"] <= ours["robust_accuracy"]
