"""The Square Attack: its schedule, its budget, and what no gradient shows."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode import attacks
from jnode.attacks.losses import margin
from jnode.attacks.norms import size
from jnode.attacks.square import _corner, _eta, _grid, _windows, shares
from jnode.evaluation import evaluate
from tests.helpers import slow_but, small_model


def test_schedule():
    found = shares(10_000)
    at = {0: 1, 10: 1, 11: 2, 50: 2, 51: 4, 201: 8, 501: 16, 2000: 32, 9000: 512}
    for query, divisor in at.items():
        assert found[query] == pytest.approx(0.8 / divisor)
    assert (shares(5000) == found[::2]).all()


def test_margin():
    logits = jnp.asarray([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    assert margin(logits, jnp.asarray([1, 2])).tolist() == [1.0, -1.0]


def rectangle(rows, columns, p=2):
    """The pyramid of the paper (section 3.4) entry by entry, of Lp norm 1; in L1 its
    terms have the fourth power."""
    n = max(rows, columns) // 2
    heights = np.zeros((rows, columns))
    for r in range(rows):
        for s in range(columns):
            m = n - max(abs(r - rows // 2), abs(s - columns // 2))
            heights[r, s] = sum(1 / (n + 1 - k) ** (4 // p) for k in range(m + 1))
    return heights / np.linalg.norm(heights.ravel(), p)


def eta(side, p=2):
    """Two rectangles, one above the other, of opposite sign."""
    half = side // 2
    upper = rectangle(half, side, p) if half else np.zeros((0, side))
    whole = np.concatenate([upper, -rectangle(side - half, side, p)])
    return whole / np.linalg.norm(whole.ravel(), p)


@pytest.mark.parametrize("p", [2, 1])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7, 9])
def test_windows_hold_the_two_pyramids_of_the_paper(side, p):
    samples = 24
    expected = eta(side, p)
    corner = [jnp.arange(samples) % 2, jnp.arange(samples) % 3]
    shape = (samples, 10, 11, 2)
    found = np.array(_eta(shape, corner, jnp.asarray(side), jr.key(0), jnp.float32, p))
    kinds = {"+": expected, "-": -expected, "+T": expected.T, "-T": -expected.T}
    seen = set()
    for i in range(samples):
        top, left = i % 2, i % 3
        window = found[i, top : top + side, left : left + side].copy()
        found[i, top : top + side, left : left + side] = 0
        for c in range(2):
            away = {k: np.abs(window[..., c] - w).max() for k, w in kinds.items()}
            best = min(away, key=lambda k: away[k])
            assert away[best] < 1e-6
            seen.add(best)
    # Nothing outside the window; each sign and each turn occurs.
    assert np.abs(found).max() == 0
    assert len(seen) == 4 if side > 2 else {k[0] for k in seen} == {"+", "-"}


def test_the_peak_is_sharp_and_the_edge_low():
    """By hand: of side 3 a row (1/4, 5/4, 1/4) above one of the other sign, twice."""
    row = np.asarray([1, 5, 1]) / 4
    low = np.asarray([1, 1, 1]) / 4
    upper, lower = row / np.linalg.norm(row), np.stack([low, row])
    # Two rows have their middle in the second.
    expected = np.stack([upper, *(-lower / np.linalg.norm(lower))]) / np.sqrt(2)
    np.testing.assert_allclose(eta(3), expected, atol=1e-12)


@pytest.mark.parametrize("p", [2, 1])
def test_mass_moves_from_one_window_to_another(p):
    """A channel keeps its mass in both windows, and gets a share of what is left."""
    delta = 0.1 * jr.normal(jr.key(0), (5, 9, 9, 2))
    norm = lambda x: np.linalg.norm(np.ravel(x), p)
    epsilon = 1.5 * max(norm(d) for d in delta)
    key = jr.key(3)
    moved = np.asarray(_windows(delta, jnp.asarray(3), jnp.asarray(epsilon), key, p))
    here, there = (_corner(delta.shape, 3, k) for k in jr.split(key, 3)[:2])
    delta = np.asarray(delta)
    for i in range(len(delta)):
        windows = [
            (
                slice(int(c[0][i]), int(c[0][i]) + 3),
                slice(int(c[1][i]), int(c[1][i]) + 3),
            )
            for c in (here, there)
        ]
        one, two = (np.zeros((9, 9), bool) for _ in windows)
        one[windows[0]], two[windows[1]] = True, True
        outside = ~(one | two)
        np.testing.assert_allclose(moved[i][outside], delta[i][outside], rtol=1e-5)
        assert np.abs(moved[i][two & ~one]).max(initial=0) == 0
        left = (epsilon**p - norm(delta[i]) ** p) / 2
        for c in range(2):
            mass = norm(delta[i, ..., c][one | two]) ** p + left
            assert norm(moved[i, ..., c][one]) ** p == pytest.approx(mass, rel=1e-4)
            old = delta[i, ..., c][windows[0]]
            directions = [
                sign * e + old / norm(old)
                for sign in (1, -1)
                for e in (eta(3, p), eta(3, p).T)
            ]
            new = moved[i, ..., c][windows[0]] / mass ** (1 / p)
            away = [np.abs(new - d / norm(d)).max() for d in directions]
            assert min(away) < 1e-5


@pytest.mark.parametrize("p", [2, 1])
def test_the_start_is_a_grid_of_the_whole_budget(p):
    images = jnp.full((3, 11, 12, 2), 0.5)
    start = np.asarray(_grid(images, jnp.asarray(0.7), jr.key(0), p))
    norms = [np.linalg.norm(x.ravel(), p) for x in start]
    np.testing.assert_allclose(norms, 0.7, rtol=1e-5)
    # Sides of 2, five of them down and six across: one row is left over.
    assert (start[:, :10] != 0).all() and (start[:, 10] == 0).all()


@pytest.fixture(scope="module")
def problem():
    model = jnode.batched(small_model(jr.key(0), lipschitz=2.0).bake())
    images = jr.uniform(jr.key(1), (48, 8, 8, 1))
    return model, images, jnp.argmax(model(images), axis=1)


@pytest.mark.parametrize("norm", slow_but(["linf", "l2"], "linf"))
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


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.3), ("l2", 0.3), ("l1", 2)])
def test_budget_and_determinism(problem, norm, epsilon):
    model, images, labels = problem
    attack, budget = attacks.Square(steps=50, restarts=2), attacks.Budget(norm, epsilon)
    run = jax.jit(lambda key: attack(model, images, labels, budget, key=key))
    first = run(jr.key(0))
    assert (first == run(jr.key(0))).all()
    assert first.min() >= 0 and first.max() <= 1
    assert size(first - images, norm).max() <= epsilon + 1e-6
    moved = jnp.any(first != images, axis=(1, 2, 3))
    assert moved.mean() > 0.5
    assert (jnp.argmax(model(first), axis=1)[moved] != labels[moved]).all()


@pytest.mark.parametrize("value", slow_but([np.nan, np.inf, -np.inf], np.inf))
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_logits_that_are_not_finite_are_a_success(problem, norm, value):
    """Of the label's class or another's, where the image is moved at all."""
    _, images, labels = problem
    images = jnp.clip(images, 0.1, 0.9)

    def model(x):
        moved = jnp.max(jnp.abs(x - images), axis=(1, 2, 3)) > 1e-3
        right = jax.nn.one_hot(labels, 4)
        spoilt = right.at[:, 0].set(value)
        return jnp.where(moved[:, None], spoilt, right)

    attack, budget = attacks.Square(steps=3), attacks.Budget(norm, 0.05)
    found = jax.jit(lambda x: attack(model, x, labels, budget, key=jr.key(0)))(images)
    assert not jnp.isfinite(model(found)).all(axis=1).any()


@pytest.mark.slow
def test_misleads_what_hides_its_gradient(problem):
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
