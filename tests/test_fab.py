"""The minimum-norm attack: its projection is exact, its distances are minimal."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.optimize import linprog

import jnode
from jnode import attacks
from jnode.attacks.fab import to_hyperplane
from jnode.attacks.norms import size
from jnode.evaluation import evaluate
from tests.helpers import slow_but, small_model


def test_projection_is_the_smallest_change(getkey):
    """Linf against a linear programme; L2 against its optimality conditions."""
    images = jr.uniform(getkey(), (20, 2, 3, 1))
    normals = jr.normal(getkey(), images.shape).at[0, 0, 0, 0].set(0.0)
    gaps = 0.5 * jr.normal(getkey(), (20,))
    inner = lambda d: jnp.sum(normals * d, axis=(1, 2, 3))
    for norm in ("linf", "l2"):
        change = to_hyperplane(images, normals, gaps, norm)
        assert (images + change).min() >= 0 and (images + change).max() <= 1
        reached = jnp.abs(inner(change) + gaps) < 1e-5
        assert reached.mean() > 0.7
        for x, w, g, d, ok in zip(
            *(np.asarray(a, np.float64) for a in (images, normals, gaps, change)),
            np.asarray(reached),
            strict=True,
        ):
            x, w, d = x.ravel(), w.ravel(), d.ravel()
            if norm == "linf":
                # Minimise s with |d_i| <= s, w.d = -g, 0 <= x + d <= 1.
                n = len(x)
                rows = np.block([[np.eye(n)], [-np.eye(n)]])
                best = linprog(
                    np.append(np.zeros(n), 1),
                    A_ub=np.hstack([rows, -np.ones((2 * n, 1))]),
                    b_ub=np.zeros(2 * n),
                    A_eq=np.append(w, 0)[None],
                    b_eq=[-g],
                    bounds=[*zip(-x, 1 - x, strict=True), (0, None)],
                )
                assert (best.status == 0) == ok
                if ok:
                    assert np.abs(d).max() == pytest.approx(best.fun, abs=1e-5)
            elif ok and abs(g) > 1e-3:
                # Free pixels move in proportion to w, the others by all their room.
                free = (np.abs(d) > 1e-7) & (x + d > 1e-6) & (x + d < 1 - 1e-6)
                ratio = d[free] / w[free]
                assert np.ptp(ratio) < 1e-4
                stuck = (w != 0) & ~free
                assert (
                    np.abs(ratio).max(initial=9) * np.abs(w[stuck])
                    >= np.abs(d[stuck]) - 1e-5
                ).all()


@pytest.fixture(scope="module")
def problem():
    model = jnode.batched(small_model(jr.key(0), lipschitz=2.0).bake())
    images = jr.uniform(jr.key(1), (48, 8, 8, 1))
    return model, images, jnp.argmax(model(images), axis=1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(
    ("kind", "restarts"),
    slow_but([(attacks.FAB, 1), (attacks.FABT, 2)], (attacks.FABT, 2), unpack=True),
)
def test_distances_are_exact_on_a_linear_model(kind, restarts, norm):
    weight = jr.normal(jr.key(0), (3, 3, 1, 3))
    model = lambda x: jnp.einsum("bhwc,hwck->bk", x, weight)
    images = 0.5 + 0.02 * jr.normal(jr.key(1), (20, 3, 3, 1))
    logits = np.asarray(model(images))
    labels = jnp.argmax(model(images), axis=1).at[0].add(1) % 3
    rows = np.asarray(weight).reshape(9, 3)
    dual = {"l2": 2, "linf": 1, "l1": np.inf}[norm]
    expected = np.asarray(
        [
            min(
                max(z[y] - z[c], 0) / np.linalg.norm(rows[:, y] - rows[:, c], dual)
                for c in range(3)
                if c != y
            )
            for z, y in zip(logits, np.asarray(labels), strict=True)
        ]
    )
    attack = kind(steps=30, restarts=restarts)
    found, distance = jax.jit(lambda x: attack.nearest(model, x, labels, norm))(images)
    near = expected < 0.4  # where [0, 1] plays no part
    assert near.mean() > 0.5 and distance[0] == 0
    away = np.asarray(distance)[near]
    assert (away >= expected[near] - 1e-5).all()
    assert (away <= 1.02 * expected[near] + 2e-3).all()
    assert (jnp.argmax(model(found), axis=1) != labels)[near].all()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nearly_as_strong_as_apgd(problem, norm):
    model, images, labels = problem
    epsilon = 0.02 if norm == "linf" else 0.12
    specs = [f"apgd-t:{norm}:{epsilon}:50:3", f"fab-t:{norm}:{epsilon}:50:3"]
    found = evaluate(
        model, images, labels, [attacks.parse(s) for s in specs], progress=False
    ).summary
    apgd, fab = [row["robust_accuracy"] for row in found["attacks"]]
    assert 0.1 < apgd < 0.9
    assert abs(fab - apgd) <= 2 / 48


@pytest.mark.parametrize("norm", slow_but(["linf", "l2"], "l2"))
def test_budget_and_misclassified_samples(problem, norm):
    model, images, labels = problem
    wrong = labels.at[:5].set((labels[:5] + 1) % 4)
    attack, budget = attacks.FABT(steps=20, restarts=3), attacks.Budget(norm, 0.05)
    run = jax.jit(lambda key: attack(model, images, wrong, budget, key=key))
    found = run(jr.key(0))
    assert size(found - images, norm).max() <= 0.05 + 1e-6
    assert found.min() >= 0 and found.max() <= 1
    assert (found[:5] == images[:5]).all()
