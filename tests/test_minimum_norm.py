"""Minimum-norm attacks on a linear model, whose distances are known; corruptions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jnode import attacks
from jnode.attacks.corruptions import CORRUPTIONS


@pytest.mark.parametrize(
    ("make", "norm", "slack"),
    [
        (lambda norm: attacks.DeepFool(10.0, norm=norm), "l2", 0.03),
        (lambda norm: attacks.DeepFool(10.0, norm=norm), "linf", 0.03),
        (lambda norm: attacks.FAB(10.0, norm=norm, steps=30), "l2", 0.02),
        (lambda norm: attacks.FAB(10.0, norm=norm, steps=30), "linf", 0.02),
        (lambda norm: attacks.CarliniWagner(10.0, steps=150), "l2", 0.05),
    ],
)
def test_distances_are_exact_on_a_linear_model(make, norm, slack):
    weight = jr.normal(jr.key(0), (3, 3, 1, 3))
    model = lambda x: jnp.einsum("bhwc,hwck->bk", x, weight)
    images = 0.5 + 0.02 * jr.normal(jr.key(1), (20, 3, 3, 1))
    logits = np.asarray(model(images))
    labels = jnp.argmax(model(images), axis=1).at[0].add(1) % 3
    rows = np.asarray(weight).reshape(9, 3)
    dual = 2 if norm == "l2" else 1
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
    attack = make(norm)
    found, distance = jax.jit(lambda x: attack.nearest(model, x, labels))(images)
    near = expected < 0.4  # where [0, 1] plays no part
    assert near.mean() > 0.5 and distance[0] == 0
    away = np.asarray(distance)[near]
    assert (away >= expected[near] - 1e-5).all()
    assert (away <= (1 + slack) * expected[near] + 2e-3).all()
    assert (jnp.argmax(model(found), axis=1) != labels)[near].all()


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda c: c.name)
def test_corruptions_grow_with_severity(corruption):
    images = jr.uniform(jr.key(0), (4, 28, 28, 3))
    labels = jnp.zeros(4, int)
    model = lambda x: jnp.stack([jnp.ones(len(x)), jnp.zeros(len(x))], axis=1)
    run = jax.jit(lambda attack, x: attack(model, x, labels, key=jr.key(1)))
    away = []
    for severity in range(1, 6):
        attack = attacks.parse(f"{corruption.name}:{severity}")
        assert attack.norm == "corruption"
        found = run(attack, images)
        assert found.min() >= 0 and found.max() <= 1
        away.append(float(jnp.mean((found - images) ** 2)))
    assert away[0] > 0 and away == sorted(away)
    # A grey picture has no contrast to lose and nothing to blur.
    if corruption.name in {"gaussian-blur", "contrast", "pixelate"}:
        flat = jnp.full_like(images, 0.3)
        assert jnp.abs(run(attack, flat) - flat).max() < 1e-5
    with pytest.raises(ValueError, match="1 to 5"):
        attacks.parse(f"{corruption.name}:6")


def test_salt_and_pepper():
    images = jnp.full((2, 50, 50, 3), 0.5)
    model = lambda x: jnp.stack([jnp.ones(len(x)), jnp.zeros(len(x))], axis=1)
    noisy = eqx.filter_jit(attacks.SaltAndPepperNoise(0.3))(
        model, images, jnp.zeros(2, int), key=jr.key(0)
    )
    assert set(np.unique(noisy).tolist()) == {0.0, 0.5, 1.0}
    assert float((noisy != 0.5).mean()) == pytest.approx(0.3, abs=0.03)
    assert float((noisy == 1).mean()) == pytest.approx(0.15, abs=0.03)
    assert (noisy == noisy[..., :1]).all()
    with pytest.raises(ValueError, match="share"):
        attacks.SaltAndPepperNoise(1.5)
