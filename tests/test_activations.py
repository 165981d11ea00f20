"""Activations: their constants hold, and what a ball can switch is bounded."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jnode.activations import (
    ACTIVATIONS,
    MONOTONE,
    make_activation,
    make_monotone,
    switching_bound,
)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_1_lipschitz(getkey, name):
    f = make_activation(name, 8)
    x, z = jr.normal(getkey(), (2, 100, 8))
    ratio = jnp.linalg.norm(f(x) - f(z), axis=1) / jnp.linalg.norm(x - z, axis=1)
    assert 0.5 < ratio.max() <= f.lipschitz * (1 + 1e-6)
    assert (f.slopes is not None) == (name in MONOTONE)
    if f.slopes is not None:
        low, high = f.slopes
        slopes = jax.vmap(jax.vmap(jax.grad(lambda v: f(v[None])[0])))(x)
        assert low - 1e-6 <= slopes.min() and slopes.max() <= high + 1e-6


def test_group_sort_sorts():
    x = jnp.asarray([1.0, 3.0, 2.0, 0.0])
    assert make_activation("maxmin", 4)(x).tolist() == [3.0, 1.0, 2.0, 0.0]
    assert make_activation("groupsort", 4)(x).tolist() == [3.0, 2.0, 1.0, 0.0]


def test_householder_starts_as_maxmin_and_learns(getkey):
    f = make_activation("householder", 6)
    x = jr.normal(getkey(), (20, 6))
    assert jnp.abs(f(x) - make_activation("maxmin", 6)(x)).max() < 1e-5
    gradient = jax.grad(lambda f: jnp.sum(f(x)[:, 0] ** 2))(f)
    assert gradient.angle[0] != 0 and (gradient.angle[1:] == 0).all()
    turned = jax.tree.map(lambda angle: angle + 1.3, f)
    jacobians = jax.vmap(jax.jacobian(turned))(x)
    gram = jnp.einsum("bij,bik->bjk", jacobians, jacobians)
    assert jnp.abs(gram - jnp.eye(6)[None]).max() < 1e-5


def test_switching_bound_against_all_sets(getkey):
    for trial in range(20):
        costs, gains = jnp.abs(jr.normal(getkey(), (2, 6)))
        costs = costs.at[0].set(-1.0) if trial % 3 == 0 else costs
        budget = 0.2 + 0.1 * trial
        paid = np.maximum(np.asarray(costs), 0) ** 2
        best = max(
            float(np.sqrt(np.sum(np.asarray(gains)[list(s)] ** 2)))
            for n in range(7)
            for s in itertools.combinations(range(6), n)
            if paid[list(s)].sum() <= budget**2
        )
        bound = float(switching_bound(costs, gains, jnp.asarray(budget)))
        assert best <= bound <= float(jnp.linalg.norm(gains)) * (1 + 1e-4)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_vjp_change_holds_in_the_ball(getkey, name):
    f = make_activation(name, 8)
    pull = lambda x, g: jax.vjp(f, x)[1](g)[0]
    for distance in (0.05, 0.5, 2.0):
        x, g = jr.normal(getkey(), (2, 8))
        limit = float(f.vjp_change(x, g, jnp.asarray(distance), jnp.asarray(1e-6)))
        moves = jr.normal(getkey(), (500, 8))
        moves = distance * moves / jnp.linalg.norm(moves, axis=1, keepdims=True)
        pulled = jax.vmap(lambda m: pull(x + m, g))(moves)
        change = jnp.linalg.norm(pulled - pull(x, g)[None], axis=1)
        assert float(change.max()) <= limit * (1 + 1e-5)
        assert limit <= 2 * f.lipschitz * float(jnp.linalg.norm(g)) * 1.01


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_activation("gelu", 4), "relu, leaky_relu, tanh"),
        (lambda: make_activation("maxmin", 3), "even number"),
        (lambda: make_activation("groupsort", 6), "multiple of 4"),
        (lambda: make_activation("householder", 5), "even number"),
        (lambda: make_monotone("maxmin", 4, "gradient flow"), "must be monotone"),
    ],
)
def test_bad_activations(make, message):
    with pytest.raises(ValueError, match=message):
        make()
