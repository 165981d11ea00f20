"""Certified robustness in Linf: what is proven holds, and training for it works."""

import dataclasses
import json
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode.attacks import PGD, Budget
from jnode.certify import interval_rules, linf
from jnode.certify.enclosures import Arithmetic
from jnode.models import Head, ODEClassifier
from jnode.models.layers import Flatten, ODEBlock
from jnode.train import DataConfig, LossConfig, RunDir, TrainConfig, ibp, train
from tests.helpers import CONV_ORDER, conv_orders, small_model


def images(key, number=4):
    return jr.uniform(key, (number, 8, 8, 1))


def linear_model(key):
    """Its field is the identity, so its logits are a linear map of the image."""
    field = jnode.fields.Decay(0.5)
    layers = [Flatten(), ODEBlock(field, jnode.Solver("euler", steps=1))]
    head = Head(64, 3, unit_norm=False, key=key)
    return ODEClassifier(layers, head, (8, 8, 1))


def test_the_radius_of_a_linear_model_is_exact(getkey):
    """It is the margin over the L1 norm of the difference of rows, halved by the
    field; and an image that far away, in the worst direction, is misclassified."""
    model = linear_model(getkey())
    x = 0.3 + 0.4 * images(getkey())
    logits = np.asarray(jax.vmap(model)(x))
    labels = jnp.asarray(np.argmax(logits, axis=1))
    found = np.asarray(linf.linf_radius(model, x, labels, 0.25))
    weight = np.asarray(model.head.weight)
    for image, row, y, radius in zip(x, logits, labels, found, strict=True):
        exact = [
            (row[y] - row[c]) / (0.5 * np.sum(np.abs(weight[y] - weight[c])))
            for c in range(3)
            if c != y
        ]
        assert radius <= min(exact) * (1 + 1e-5)
        if min(exact) > 0.25:
            assert radius == 0.25
            continue
        assert radius > 0.97 * min(exact) - 0.25 / 2**linf.HALVINGS
        nearest = [c for c in range(3) if c != y][int(np.argmin(exact))]
        away = np.sign(weight[nearest] - weight[y]).reshape(8, 8, 1)
        moved = image + 1.02 * min(exact) * jnp.asarray(away, image.dtype)
        assert jnp.argmax(model(moved)) != y
        reach = jnp.asarray(radius * away, image.dtype)
        assert jnp.argmax(model(image + reach)) == y


def test_no_attack_breaks_what_is_proven(getkey):
    model = small_model(getkey(), "free", jnode.Solver("euler", steps=1))
    x = images(getkey(), 6)
    labels = jnp.argmax(jax.vmap(model)(x), axis=1)
    radii = linf.linf_radius(model, x, labels, 0.2)
    assert jnp.all(radii >= 0) and jnp.any(radii > 1e-4)
    assert jnp.all(linf.linf_robust(model, x, labels, jnp.maximum(radii, 0)))
    budget = Budget("linf", jnp.maximum(radii, 0))
    found = PGD(steps=20)(jnode.batched(model), x, labels, budget, key=getkey())
    assert jnp.all(jnp.argmax(jax.vmap(model)(found), axis=1) == labels)


def test_differences_of_logits_are_bounded_as_such(getkey):
    """What the logits share cancels, so the bound is below that of two intervals."""
    model = linear_model(getkey())
    shared = 10 * jr.normal(getkey(), (1, 64))
    weight = model.head.weight + shared
    model = eqx.tree_at(lambda m: m.head.weight, model, weight)
    x, labels = images(getkey(), 2), jnp.asarray([0, 1])
    worst = linf.gains(model, x, labels, 0.01)
    assert jnp.all(jnp.max(worst, axis=1) < 5)
    assert jnp.all(0.01 * jnp.sum(jnp.abs(weight[0])) > 2)


def test_images_whose_logits_may_be_nan_are_not_proven():
    """The logarithm of an image within reach is NaN, and its sigmoid is no number in
    (0, 1): the model does not classify that image."""

    class Gate(jnode.models.AbstractLayer):
        affine: ClassVar[bool] = False

        def __call__(self, x):
            return jax.nn.sigmoid(jnp.log(x - 0.05))

        def lipschitz(self):
            return jnp.asarray(jnp.inf)

    head = Head(4, 3, unit_norm=False, key=jr.key(0))
    head = eqx.tree_at(lambda h: h.bias, head, jnp.asarray([0.0, 9.0, 0.0]))
    layers = (Flatten(), Gate())
    block = ODEBlock(jnode.fields.Decay(0.5), jnode.Solver("euler", steps=1))
    model = ODEClassifier((layers[0], block, layers[1]), head, (2, 2, 1))
    x, labels = jnp.full((2, 2, 2, 1), 0.3), jnp.asarray([1, 1])
    assert jnp.isnan(model(jnp.zeros((2, 2, 1)))).all()
    assert not linf.linf_robust(model, x, labels, 0.3).any()
    radii = np.asarray(linf.linf_radius(model, x, labels, 0.5))
    assert (radii > 0.15).all() and (radii < 0.21).all()


def test_what_ignores_the_image_is_proven_everywhere():
    """A model whose features are two thresholds, alike for all images in the ball."""

    class Sign(jnode.models.AbstractLayer):
        affine: ClassVar[bool] = False

        def __call__(self, x):
            return jnp.where(x > 2, 1.0, -1.0)

        def lipschitz(self):
            return jnp.asarray(jnp.inf)

    head = Head(4, 3, unit_norm=False, key=jr.key(0))
    block = ODEBlock(jnode.fields.Decay(0.5), jnode.Solver("euler", steps=1))
    layers = (Flatten(), block, Sign())
    model = ODEClassifier(layers, head, (2, 2, 1))
    x = jnp.full((3, 2, 2, 1), 0.3)
    logits = jax.vmap(model)(x)
    worst = linf.gains(model, x, jnp.zeros(3, int), 0.1)
    assert worst.shape == (3, 3)
    assert bool(jnp.all(worst >= logits - logits[:, :1]))


def test_adaptive_solvers_and_bad_radii_are_refused(getkey):
    x, labels = images(getkey(), 2), jnp.zeros(2, int)
    model = small_model(getkey(), "free", jnode.Solver("bosh3"))
    with pytest.raises(ValueError, match="solver must take fixed steps"):
        linf.linf_robust(model, x, labels, 0.1)
    with pytest.raises(ValueError, match="adjoint must be 'direct' to be enclosed"):
        solver = jnode.Solver("euler", steps=1, adjoint="checkpointed")
        linf.linf_robust(model.with_solver(solver), x, labels, 0.1)
    with pytest.raises(ValueError, match="labels must lie in"):
        linf.linf_robust(model, x, labels - 1, 0.1)
    with pytest.raises(ValueError, match="epsilon must be at least 0"):
        linf.linf_robust(model, x, labels, -0.1)
    with pytest.raises(ValueError, match="largest must be positive"):
        linf.linf_radius(model, x, labels, 2.0)


def test_orthogonal_fields_blow_intervals_up(getkey):
    """By the sums of their rows' absolute values, where the L2 norm is 1."""
    model = small_model(getkey(), "ortho", jnode.Solver("euler", steps=1))
    some = images(getkey(), 2)
    widths, sizes = linf.widths(model, some, 0.01)
    # Of the features themselves, however wide the intervals.
    seen = jax.vmap(model.embed)(some).reshape(2, -1)
    np.testing.assert_allclose(sizes, jnp.max(jnp.abs(seen), axis=1), rtol=1e-5)
    free, _ = linf.widths(linear_model(getkey()), images(getkey(), 2), 0.01)
    assert jnp.min(widths) > 3 * jnp.max(free)


def test_rounding_is_proven_at_images(getkey):
    model = small_model(getkey(), "gradient_flow", jnode.Solver("euler", steps=1))
    x = images(getkey(), 2)
    proven, _ = linf.proven_rounding(model, x)
    short = np.asarray(jax.vmap(model.bake().embed)(x), np.float64)
    with jax.enable_x64(True):
        wide = lambda a: jnp.asarray(np.asarray(a), jnp.float64)
        exact = jax.tree.map(
            lambda a: wide(a) if eqx.is_inexact_array(a) else a, model.bake()
        )
        truth = np.asarray(jax.vmap(exact.embed)(wide(x)))
    errors = np.linalg.norm(truth - short, axis=1)
    assert np.all(errors <= proven)
    # Of a dense linear model it is less than what is allowed.
    proven, stated = linf.proven_rounding(linear_model(getkey()), x)
    assert np.all(np.asarray(proven) < stated)


def test_fast_bounds_are_those_of_the_proof_but_for_rounding(getkey):
    model = jnode.resolve(small_model(getkey(), "free", jnode.Solver("euler", steps=1)))
    x, labels = images(getkey(), 2), jnp.asarray([0, 1])
    fast = linf.gains(model[0], x, labels, 0.01, Arithmetic(False, 0))
    slow = linf.gains(model[0], x, labels, 0.01, Arithmetic(True, 0))
    assert jnp.all(slow >= fast)
    np.testing.assert_allclose(fast, slow, rtol=1e-3, atol=1e-3)


def test_training_encloses_convolutions_by_their_kernels(getkey):
    """And not by frequencies, as on CPU, whose three maps widen intervals far more."""
    config = jnode.ModelConfig("free", patch=2, features=32)
    how = {"image_shape": (8, 8, 1), "classes": 3, "key": getkey()}
    model = jnode.build(config, jnode.Solver("euler", steps=1), **how)
    model = jnode.constraints.plain(model)
    spectra = lambda m: [m.layers[1].field.first, m.layers[1].field.second]
    assert all(conv.spectral is not None for conv in spectra(model))
    x, labels = images(getkey(), 2), jnp.asarray([0, 1])
    epsilon = jnp.full(2, 0.05)
    gains, inputs = eqx.filter_jit(linf.gains), (model, x, labels, epsilon)
    by_kernels, _ = eqx.filter_jit(ibp.worst_entropy)(*inputs, 1.0)
    by_frequencies = gains(*inputs, Arithmetic(False, 0))
    composed = gains(*inputs, Arithmetic(False))
    entropies = [
        -jax.nn.log_softmax(worst)[jnp.arange(2), labels]
        for worst in (composed, by_frequencies)
    ]
    assert jnp.all(by_kernels >= entropies[0] - 1e-4)
    assert jnp.all(by_kernels < entropies[1] / 3)


def test_enclosed_convolutions_are_those_of_all_images(getkey, monkeypatch):
    """Single ones have the derivatives of a grouped convolution, in another order."""
    config = jnode.ModelConfig("free", patch=4, features=20, hidden=6)
    how = {"image_shape": (16, 16, 1), "classes": 3, "key": getkey()}
    model = jnode.build(config, jnode.Solver("euler", steps=2), **how)
    x, labels = jr.uniform(getkey(), (4, 16, 16, 1)), jnp.asarray([0, 1, 2, 0])
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)

    def slope(arrays, x):
        def loss(arrays):
            model = jnode.constraints.plain(eqx.combine(arrays, rest))
            worst, _ = ibp.worst_entropy(model, x, labels, jnp.full(4, 0.01), 1.0)
            return jnp.mean(worst)

        return jax.grad(loss)(arrays)

    assert set(conv_orders(slope, arrays, x)) == {CONV_ORDER}
    found = jax.jit(slope)(arrays, x)
    monkeypatch.setattr(interval_rules, "_is_ordered", lambda params: False)
    jax.clear_caches()
    assert set(conv_orders(slope, arrays, x)) != {CONV_ORDER}
    single = jax.jit(slope)(arrays, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_the_ramp():
    progress = jnp.asarray([0.0, 0.05, 0.325, 0.6, 1.0])
    np.testing.assert_allclose(
        ibp.ramp(progress, 0.6), [0, 0, 0.5, 1, 1], rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_training_by_intervals_certifies(tmp_path, standard_promotion):
    """A small run on real digits, far above chance at radius 0.05, and its script."""
    from jnode.enclosed_runs import enclose_run, rounding_run

    config = TrainConfig(
        data=DataConfig(num_train=2000),
        model=jnode.ModelConfig("free", patch=7, features=64, kernel_size=1),
        solver=jnode.Solver("euler", steps=1),
        loss=LossConfig("ibp", epsilon=0.05, kappa=0.5, ramp=0.5),
        epochs=6,
        batch_size=50,
        learning_rate=3e-3,
        weight_decay=0.0,
    )
    train(config, tmp_path / "run", progress=False)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["certified"] > 0.3
    found = enclose_run(tmp_path / "run", [0.01, 0.05], num_examples=100)
    written = json.loads((tmp_path / "run" / "certificate-linf.json").read_text())
    assert written == found
    shares = [row["certified_accuracy"] for row in found["certified_accuracy"]]
    assert found["clean_accuracy"] >= shares[0] >= shares[1] > 0.3
    assert found["widest"] < found["features"]
    told = rounding_run(tmp_path / "run", num_examples=20)
    assert 0 < told["largest_proven"] < 1e-2
    assert RunDir(tmp_path / "run").unknown() == []  # so it may be overwritten
    with pytest.raises(ValueError, match="ibp loss needs steps"):
        dataclasses.replace(config, solver=jnode.Solver("bosh3"))


def test_images_that_are_not_in_range(getkey, unchecked):
    """An empty ball proves nothing, and the image itself counts wherever it lies."""
    model = linear_model(getkey())
    x = images(getkey()) * 3 + 1.5
    labels = jnp.asarray(np.argmax(jax.vmap(model)(x), axis=1))
    for function in (linf.linf_robust, linf.linf_radius):
        with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
            function(model, x, labels, 0.1)
        with pytest.raises(ValueError, match="as many"):
            function(model, images(getkey()), labels[:2], 0.1)
        with pytest.raises(ValueError, match="at least one image"):
            function(model, x[:0], labels[:0], 0.1)
    traced = jax.jit(lambda x, labels: linf.linf_robust(model, x, labels, 0.01))
    assert not traced(x, (labels + 1) % 3).any()


def test_the_radius_of_another_label_is_minus_1(getkey):
    model = linear_model(getkey())
    x = images(getkey())
    labels = jnp.asarray(np.argmax(jax.vmap(model)(x), axis=1))
    found = linf.linf_radius(model, x, (labels + 1) % 3, 0.5)
    np.testing.assert_array_equal(found, -np.ones(len(x)))
