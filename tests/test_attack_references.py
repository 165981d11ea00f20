"""Attacks on linear classifiers, whose nearest adversarial images are known exactly."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.optimize import linprog

from jnode import attacks
from jnode.attacks import Budget
from jnode.attacks.fab import AbstractFAB
from jnode.attacks.norms import size
from tests.helpers import slow_but

SHAPE, IMAGES = (4, 4, 1), 24
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


class Linear(eqx.Module):
    """Logits Wx, of images around grey, so that [0, 1] plays no part."""

    weight: jax.Array

    def __call__(self, images):
        return (images.reshape(len(images), -1) - 0.5) @ self.weight


def problem(classes):
    model = Linear(jr.normal(jr.key(classes), (16, classes)))
    images = 0.5 + 0.04 * jr.normal(jr.key(1), (IMAGES, *SHAPE))
    return model, images, jnp.argmax(model(images), axis=1)


def distances(model, images, labels, norm):
    """To the nearest misclassified image: the least margin over its dual norm."""
    logits = np.asarray(model(images), np.float64)
    weight = np.asarray(model.weight, np.float64)
    rows = []
    for z, y in zip(logits, np.asarray(labels), strict=True):
        others = [c for c in range(len(z)) if c != y]
        slopes = (weight[:, y] - weight[:, c] for c in others)
        steep = [np.linalg.norm(w, DUAL[norm]) for w in slopes]
        rows.append(np.min((z[y] - z[others]) / steep))
    return np.asarray(rows)


def targeted_distances(model, images, targets):
    """In Linf to the nearest image that is given its target: a linear programme."""
    logits = np.asarray(model(images), np.float64)
    weight = np.asarray(model.weight, np.float64)
    n, found = len(weight), []
    for z, t in zip(logits, np.asarray(targets), strict=True):
        others = [c for c in range(len(z)) if c != t]
        ahead = weight[:, others] - weight[:, [t]]
        rows = np.block([[np.eye(n)], [-np.eye(n)]])
        best = linprog(
            np.append(np.zeros(n), 1),
            A_ub=np.vstack(
                [
                    np.hstack([rows, -np.ones((2 * n, 1))]),
                    np.hstack([ahead.T, np.zeros((len(others), 1))]),
                ]
            ),
            b_ub=np.append(np.zeros(2 * n), z[t] - z[others]),
            bounds=[(None, None)] * n + [(0, None)],
        )
        found.append(best.fun)
    return np.asarray(found)


def succeeded(attack, model, images, labels, budget, targets=None):
    found = attack(model, images, labels, budget, targets=targets, key=jr.key(0))
    assert (size(found - images, budget.norm) <= budget.epsilon + 1e-6).all()
    given = jnp.argmax(model(found), axis=1)
    return np.asarray(given != labels if targets is None else given == targets)


# With two classes the gradient of each loss is the way; with several it is that of the
# attacks that look at one class after another.
EXACT = [(2, name) for name in ("fgsm", "pgd", "apgd-ce", "fab", "fab-t")]
EXACT += [(5, name) for name in ("apgd-t", "fab", "fab-t")]


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize(("classes", "name"), slow_but(EXACT, *EXACT[::3], unpack=True))
def test_success_just_beyond_the_exact_distance_and_never_within(classes, name, norm):
    model, images, labels = problem(classes)
    exact = distances(model, images, labels, norm)
    counts = {"restarts": classes - 1} if name[-2:] == "-t" else {}
    attack = attacks.make(name, steps=40, **counts)
    # PGD's steps are 2.5 epsilon in all: from its random start an L2 ball's far point
    # is reached within some four per cent.
    beyond = Budget(norm, (1.05 if name == "pgd" else 1.01) * exact)
    within = Budget(norm, 0.999 * exact)
    assert not succeeded(attack, model, images, labels, within).any()
    assert succeeded(attack, model, images, labels, beyond).mean() >= 0.95


@pytest.mark.parametrize("norm", slow_but(["linf", "l2"], "l2"))
def test_no_attack_succeeds_within_the_exact_distance(norm):
    """And the weaker ones do so at twice the distance."""
    model, images, labels = problem(5)
    exact = distances(model, images, labels, norm)
    for name in ("pgd", "apgd-ce", "apgd-dlr", "square"):
        attack = attacks.make(name, steps=100)
        within, beyond = (Budget(norm, share * exact) for share in (0.999, 2.0))
        assert not succeeded(attack, model, images, labels, within).any()
        assert succeeded(attack, model, images, labels, beyond).mean() >= 0.7


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("name", slow_but(["fab", "fab-t"], "fab-t"))
def test_the_nearest_image_is_at_the_exact_distance(name, norm):
    model, images, labels = problem(5)
    counts = {"restarts": 4} if name == "fab-t" else {}
    attack = attacks.make(name, steps=40, **counts)
    assert isinstance(attack, AbstractFAB)
    found, away = attack.nearest(model, images, labels, norm)
    exact = distances(model, images, labels, norm)
    np.testing.assert_allclose(away, size(found - images, norm), rtol=1e-6)
    assert (np.asarray(away) >= exact * (1 - 1e-4)).all()
    assert (np.asarray(away) <= exact * 1.02 + 1e-3).all()


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("name", slow_but(attacks.ATTACKS, "fgsm", "square"))
def test_an_epsilon_of_each_image_is_as_many_calls(name, norm):
    """Those that draw no numbers and stop no sooner alone are the same all over."""
    model, images, labels = problem(5)
    exact = distances(model, images, labels, norm)
    epsilon = np.where(np.arange(IMAGES) % 2, 3.0, 0.5) * exact
    counts = {} if name == "fgsm" else {"steps": 40, "restarts": 2}
    attack = attacks.make(name, **counts)
    each = attack(model, images, labels, Budget(norm, epsilon), key=jr.key(0))
    for i in (0, 1):
        budget = Budget(norm, float(epsilon[i]))
        alone = attack(
            model, images[i : i + 1], labels[i : i + 1], budget, key=jr.key(0)
        )
        misled = jnp.argmax(model(alone), axis=1)[0] != labels[i]
        assert misled == (jnp.argmax(model(each), axis=1)[i] != labels[i])
        if name == "fgsm":
            np.testing.assert_allclose(each[i], alone[0], atol=1e-6)
    moved = jnp.argmax(model(each), axis=1) != labels
    assert not moved[::2].any() and moved[1::2].mean() >= 0.7


@pytest.mark.parametrize("name", slow_but(attacks.ATTACKS, "fgsm", "apgd-t"))
def test_targets_are_reached_beyond_the_exact_distance_and_never_within(name):
    model, images, labels = problem(5)
    targets = (labels + 1 + jnp.arange(IMAGES) % 4) % 5
    exact = targeted_distances(model, images, targets)
    assert (exact > distances(model, images, labels, "linf") - 1e-9).all()
    steps = {"steps": 400 if name == "square" else 60}
    attack = attacks.make(name, **steps)
    within, beyond = (Budget("linf", share * exact) for share in (0.999, 1.5))
    assert not succeeded(attack, model, images, labels, within, targets).any()
    reached = succeeded(attack, model, images, labels, beyond, targets).mean()
    # The cross-entropy weighs all classes, so its optimum is not the target's margin.
    # One step of it and a random search are no way to be exact.
    least = {"fgsm": 0.5, "square": 0.5, "pgd": 0.8, "apgd-ce": 0.8}
    assert reached >= least.get(name, 0.95)


@pytest.mark.parametrize("norm", DUAL)
def test_targets_that_are_predicted_already_and_wrong_labels(norm):
    """An image that is given its target comes back; one that is merely misclassified
    goes on to its target."""
    model, images, labels = problem(5)
    targets = (labels + 1) % 5
    wrong = labels.at[:6].set(targets[:6]).at[6:12].add(2) % 5
    aims = targets.at[:6].set(labels[:6])
    budget = Budget(norm, 6 * distances(model, images, labels, norm).max())
    found = attacks.APGDT(steps=30, restarts=1)(
        model, images, wrong, budget, targets=aims, key=jr.key(0)
    )
    assert (found[:6] == images[:6]).all()
    given = jnp.argmax(model(found), axis=1)
    assert (given == aims).mean() >= 0.9 and (given == aims)[6:12].any()


def test_run_counts_what_is_given_its_target():
    model, images, labels = problem(5)
    labels = labels.at[:3].add(1) % 5
    predicted = jnp.argmax(model(images), axis=1)
    targets = jnp.where(labels == predicted, (labels + 2) % 5, predicted)
    epsilon = 2 * np.median(targeted_distances(model, images, targets)[3:])
    trials = [
        (attack, Budget("linf", epsilon))
        for attack in (attacks.FGSM(), attacks.APGDT(steps=40, restarts=2))
    ]
    found = attacks.run(
        model,
        images,
        labels,
        trials,
        targets=targets,
        key=jr.key(0),
        batch_size=10,
        progress=False,
    )
    first = found.first_success
    assert (first[:3] == attacks.MISCLASSIFIED).all()
    given = np.asarray(jnp.argmax(model(jnp.asarray(found.adversarial)), axis=1))
    assert (given == np.asarray(targets))[first >= 0].all()
    assert np.mean(first[3:] >= 0) > 0.5 and set(first.tolist()) >= {-2, 0, 1}
    # A misclassified image that is not given its target is no success.
    untargeted = attacks.run(
        model, images, labels, trials, key=jr.key(0), progress=False
    )
    assert untargeted.robust_accuracy <= found.robust_accuracy
