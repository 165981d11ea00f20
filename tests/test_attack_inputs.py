"""What every attack takes: shapes, types and ranges; and what it compiles."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode import attacks
from jnode.attacks import Budget, Untargeted
from jnode.attacks.fab import AbstractFAB
from jnode.attacks.losses import loss_and_gradient
from jnode.attacks.norms import NORMS, size
from jnode.attacks.registry import ATTACKS, make
from jnode.evaluation import Transfer, evaluate
from tests.helpers import compilations, slow_but, small_model

SHAPE, CLASSES = (4, 4, 3), 4
FEW = {"steps": 3, "restarts": 2}
OPTIONS = dict.fromkeys(
    ("pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"), FEW
)
CASES = [(name, norm) for name in ATTACKS for norm in NORMS]
# Each attack in one norm.
FEW_CASES = [(name, NORMS[i % 2]) for i, name in enumerate(ATTACKS)]
BUDGET = Budget("linf", 0.05)


def build(name):
    return make(name, **OPTIONS.get(name, {}))


class Network(eqx.Module):
    """One hidden layer; it computes in the dtype of its weights."""

    first: jax.Array
    second: jax.Array

    def __init__(self, dtype=jnp.float32):
        one, two = jr.split(jr.key(0))
        n = math.prod(SHAPE)
        self.first = jr.normal(one, (n, 8), jnp.float32).astype(dtype)
        self.second = 3 * jr.normal(two, (8, CLASSES), jnp.float32).astype(dtype)

    def __call__(self, images):
        x = images.astype(self.first.dtype).reshape(len(images), -1) - 0.5
        return jnp.tanh(x @ self.first) @ self.second


def problem(dtype=jnp.float32, n=6):
    images = jr.uniform(jr.key(1), (n, *SHAPE), jnp.float32).astype(dtype)
    labels = jnp.argmax(Network()(images.astype(jnp.float32)), axis=1)
    return images, labels.at[:1].add(1) % CLASSES


# Types.


@pytest.mark.parametrize(
    ("dtype", "model_dtype"),
    slow_but(
        [("float32", "float32"), ("float64", "float64"), ("float64", "float32")],
        ("float64", "float64"),
        unpack=True,
    ),
)
@pytest.mark.parametrize(("name", "norm"), slow_but(CASES, *FEW_CASES, unpack=True))
def test_double_precision(x64, name, norm, dtype, model_dtype):
    model, attack = Network(model_dtype), build(name)
    images, labels = problem(dtype)
    found = attack(model, images, labels, Budget(norm, 0.05), key=jr.key(0))
    assert found.dtype == images.dtype and found.shape == images.shape
    assert found.min() >= 0 and found.max() <= 1
    assert size(found - images, norm).max() <= 0.05 + 1e-6
    assert (found[0] == images[0]).all()  # misclassified before
    if isinstance(attack, AbstractFAB):
        near, distance = attack.nearest(model, images, labels, norm, key=jr.key(0))
        assert near.dtype == distance.dtype == images.dtype and distance[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_double_precision_of_run_and_evaluate(x64, dtype):
    model = Network(dtype)
    images, labels = problem(dtype)
    every = [(build(name), Budget("l2", 0.05)) for name in ATTACKS]
    every += [attacks.Trial(attacks.GaussianNoise(0.05))]
    found = attacks.run(
        model, images, labels, every, key=jr.key(0), batch_size=4, progress=False
    )
    assert found.adversarial.dtype == images.dtype
    transfer = Transfer(source=model, via="itself", steps=3), BUDGET
    result = evaluate(
        model, images, labels, [*every, transfer], batch_size=4, progress=False
    )
    assert result.outcome.attacked[0].shown.dtype == images.dtype
    assert len(result.summary["attacks"]) == len(every) + 1
    assert result.summary["clean_accuracy"] == 5 / 6


@pytest.mark.slow
def test_double_precision_of_a_neural_ode(x64):

    model = jnode.batched(small_model(jr.key(0)).bake())
    images = np.asarray(jr.uniform(jr.key(1), (4, 8, 8, 1)))
    assert images.dtype == np.float64
    labels = np.asarray(jnp.argmax(model(jnp.asarray(images)), axis=1))
    few = [
        (attacks.PGD(steps=2), BUDGET),
        (attacks.Square(steps=2), Budget("l2", 0.05)),
    ]
    result = evaluate(model, images, labels, few, batch_size=4, progress=False)
    assert result.summary["clean_accuracy"] == 1


@pytest.mark.parametrize(("name", "norm"), slow_but(CASES, *FEW_CASES[:2], unpack=True))
def test_logits_of_half_precision(name, norm):
    images, labels = problem()
    model, budget = Network("bfloat16"), Budget(norm, 0.05)
    found = build(name)(model, images, labels, budget, key=jr.key(0))
    assert found.dtype == jnp.float32
    assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("dtype", slow_but(["bfloat16", "float16"], "float16"))
def test_half_precision_inside_losses_run_and_evaluate(dtype):
    model = Network(dtype)
    images, labels = problem()
    losses, logits, gradient = loss_and_gradient(model, images, Untargeted(labels).loss)
    assert losses.dtype == logits.dtype == gradient.dtype == jnp.float32
    few = [(a, BUDGET) for a in (attacks.PGD(steps=3), attacks.APGDT(steps=3))]
    found = attacks.run(model, images, labels, few, key=jr.key(0), progress=False)
    result = evaluate(model, images, labels, few, progress=False)
    assert found.adversarial.dtype == np.float32 and len(result.outcome.attacked) == 2


ways = pytest.mark.parametrize(
    "way", ["call", "jit", "nearest", "from_keys", "noise", "run", "eval"]
)


def ask(way, images, labels):
    """One of the ways to attack, on a model that takes anything."""
    model = lambda x: jnp.broadcast_to(jnp.arange(4.0), (len(x), CLASSES))
    key, attack, trials = jr.key(0), attacks.PGD(steps=2), [(attacks.FGSM(), BUDGET)]
    if way == "call":
        return attack(model, images, labels, BUDGET, key=key)
    if way == "jit":
        return jax.jit(lambda x: attack(model, x, labels, BUDGET, key=key))(images)
    if way == "nearest":
        return attacks.FABT(steps=2).nearest(model, images, labels, "linf")[0]
    if way == "from_keys":
        keys = jr.split(key, len(images))
        return attack.from_keys(model, images, labels, BUDGET, keys)
    if way == "noise":
        return attacks.GaussianNoise(0.05)(images, key=key)
    if way == "run":
        return attacks.run(model, images, labels, trials, key=key, progress=False)
    return evaluate(model, images, labels, trials, progress=False)


@ways
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x.astype(jnp.bfloat16), TypeError, "bfloat16: cast them"),
        (lambda x: x.astype(jnp.float16), TypeError, "float16: cast them"),
        (lambda x: (255 * x).astype(jnp.uint8), TypeError, "uint8.*to_float"),
        (lambda x: x[:, 0, 0], ValueError, r"shape.*height, width.*\(6, 3\)"),
        (lambda x: x[..., 0], ValueError, r"shape.*height, width.*\(6, 4, 4\)"),
        (lambda x: x[0], ValueError, r"shape.*height, width.*\(4, 4, 3\)"),
        (lambda x: 2 * x - 1, ValueError, r"\[0, 1\]|0, 1"),
        (lambda x: x.at[0, 0, 0, 0].set(jnp.nan), ValueError, "NaN"),
    ],
    ids=["bfloat16", "float16", "uint8", "vectors", "grey", "single", "range", "nan"],
)
def test_images_are_refused_in_one_sentence(way, change, error, message):
    images, labels = problem()
    images = change(images)
    labels = labels[: len(images)]
    if way == "jit" and images.dtype == jnp.float32 and images.ndim == 4:
        ask(way, images, labels)  # the range of what is traced is not known
        return
    with pytest.raises(error, match=message):
        ask(way, images, labels)


@ways
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda y: y.astype(jnp.float32), TypeError, "integers, not float32"),
        (lambda y: jax.nn.one_hot(y, 4).astype(int), ValueError, "shape"),
        (lambda y: y[:3], ValueError, "one class index for each|as many"),
        (lambda y: y.at[1].set(CLASSES), ValueError, r"labels must lie in 0\.\.3.*4"),
        (lambda y: y.at[1].set(-1), ValueError, r"labels must lie in 0\.\.3.*-1"),
    ],
    ids=["float", "one-hot", "few", "too-large", "negative"],
)
def test_labels_are_refused_in_one_sentence(way, change, error, message):
    if way == "noise":
        return  # it looks at none
    images, labels = problem()
    with pytest.raises(error, match=message):
        ask(way, images, change(labels))


def test_integers_of_any_kind_are_labels():
    images, labels = problem()
    model, attack, key = Network(), attacks.APGDCE(steps=2), jr.key(0)
    expected = attack(model, images, labels, BUDGET, key=key)
    run = lambda labels: attacks.run(
        model, images, labels, [(attack, BUDGET)], key=key, progress=False
    )
    kinds = [np.asarray(labels), np.asarray(labels, np.uint8), labels.tolist()]
    for kind in kinds:
        assert (attack(model, images, kind, BUDGET, key=key) == expected).all()
        assert (run(kind).first_success == run(labels).first_success).all()
    # NumPy's float64 images, too: without the 64-bit mode they become float32.
    wide = np.asarray(images, np.float64)
    assert (attack(model, wide, labels, BUDGET, key=key) == expected).all()


def test_logits_that_are_not_finite_are_misclassified():
    logits = jnp.asarray([[2.0, 1.0], [jnp.inf, 1.0], [2.0, jnp.nan], [1.0, 2.0]])
    zeros = jnp.zeros(4, int)
    assert Untargeted(zeros).reached(logits).tolist() == [0, 1, 1, 1]
    # But of no class: they reach no target.
    assert attacks.Targeted(zeros).reached(logits).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_empty_batch_comes_back_empty(name):
    images, attack = np.zeros((0, *SHAPE), np.float32), build(name)
    for norm in NORMS:
        for labels, epsilon in (([], 0.05), (np.zeros(0, int), np.zeros(0))):
            budget = Budget(norm, epsilon)
            found = attack(Network(), images, labels, budget, key=jr.key(0))
            assert found.shape == images.shape and found.dtype == jnp.float32
        if isinstance(attack, AbstractFAB):
            found, distance = attack.nearest(Network(), images, [], norm)
            assert found.shape == images.shape and distance.shape == (0,)


def test_an_empty_set_has_no_accuracy():
    images = np.zeros((0, *SHAPE), np.float32)
    few = [(attacks.PGD(), BUDGET), (attacks.FGSM(), BUDGET)]
    few += [attacks.Trial(attacks.GaussianNoise(0.1))]
    found = attacks.run(Network(), images, [], few, key=jr.key(0))
    assert found.adversarial.shape == images.shape and len(found.first_success) == 0
    assert math.isnan(found.robust_accuracy) and found.robust.shape == (3, 0)
    assert found.logits.shape == (0, CLASSES)
    summary = evaluate(Network(), images, [], few, progress=False).summary
    assert math.isnan(summary["clean_accuracy"]) and summary["num_examples"] == 0
    assert [row["attacked"] for row in summary["attacks"]] == [0, 0, 0]
    assert summary["flags"] == []
    keys = jr.split(jr.key(0), 0)
    pgd = attacks.PGD()
    assert pgd.from_keys(Network(), images, [], BUDGET, keys).shape[0] == 0
    assert attacks.GaussianNoise(0.1)(images, key=jr.key(0)).shape == images.shape


@pytest.mark.parametrize(
    ("norm", "epsilon", "error", "message"),
    [
        ("l2", -0.1, ValueError, "epsilon must be at least 0 and finite"),
        ("l2", math.nan, ValueError, "epsilon must be at least 0 and finite"),
        ("l2", math.inf, ValueError, "epsilon must be at least 0 and finite"),
        ("l2", [0.1, -0.1], ValueError, "epsilon must be at least 0 and finite"),
        ("l2", [[0.1]], ValueError, r"not of the shape \(1, 1\)"),
        ("l2", "8/255", TypeError, "epsilon must be a number or an array of numbers"),
        ("l2", True, TypeError, "epsilon must be a number or an array of numbers"),
        ("l2", None, TypeError, "epsilon must be a number or an array of numbers"),
        ("l3", 0.1, ValueError, "norm must be one of linf, l2, l1"),
    ],
)
def test_budgets_that_make_no_sense(norm, epsilon, error, message):
    with pytest.raises(error, match=message):
        Budget(norm, epsilon)


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf, [0.1, 0.2]])
def test_noise_that_makes_no_sense(sigma):
    with pytest.raises(ValueError, match="sigma must be a number of at least 0"):
        attacks.GaussianNoise(sigma)


@pytest.mark.parametrize("way", ["call", "run"])
def test_epsilons_and_targets_are_refused_in_one_sentence(way, unchecked):
    model, attack, key = Network(), attacks.FGSM(), jr.key(0)
    images, labels = problem()

    def ask(budget: Any = BUDGET, **options):
        if way == "call":
            return attack(model, images, labels, budget, key=key, **options)
        trials = [(attack, budget)]
        run = attacks.run
        return run(model, images, labels, trials, key=key, progress=False, **options)

    with pytest.raises(TypeError, match="budget must be a jnode.attacks.Budget"):
        ask(0.05)
    with pytest.raises(ValueError, match="one number for each of the 6 images"):
        ask(Budget("linf", [0.1, 0.2]))
    for targets, error, message in (
        (labels, ValueError, "targets must be other classes than the labels"),
        ((labels + 1) / 4, TypeError, "targets must be integers"),
        (labels[:2], ValueError, "targets must be one class index for each image"),
        (labels + CLASSES, ValueError, r"targets must lie in 0\.\.3"),
    ):
        with pytest.raises(error, match=message):
            ask(targets=targets)


def test_a_model_of_one_image_is_wrapped():
    """Ours and any other; unwrapped it is refused with the remedy."""
    single: Any = lambda image: Network()(image[None])[0]
    images, labels = problem()
    attack, key = attacks.PGD(steps=2), jr.key(0)
    found = attack(jnode.batched(single), images, labels, BUDGET, key=key)
    expected = attack(Network(), images, labels, BUDGET, key=key)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    few: tuple[Any, ...] = (
        lambda x: jnp.sum(x) * jnp.ones(4),
        lambda x: jnp.ones((4, 4)),
    )
    for wrong in few:
        with pytest.raises(ValueError, match="Wrap a model of one image"):
            attack(wrong, images, labels, BUDGET, key=key)
        with pytest.raises(ValueError, match="Wrap a model of one image"):
            attacks.run(wrong, images, labels, [(attack, BUDGET)], key=key)
    pair: Any = lambda x: (Network()(x), x)
    with pytest.raises(ValueError, match="an array of logits, not tuple"):
        attack(pair, images, labels, BUDGET, key=key)


def test_explicit_axes_are_taken_outside_of_jit():
    images, labels = problem()
    attack, budget, key = attacks.PGD(steps=2), Budget("l2", 0.05), jr.key(0)
    expected = attack(Network(), images, labels, budget, key=key)
    for kind in ("Explicit", "Auto"):
        axis_type = getattr(jax.sharding.AxisType, kind)
        mesh = jax.make_mesh((2,), ("batch",), axis_types=(axis_type,))
        spec = jax.sharding.PartitionSpec("batch")
        sharding = jax.sharding.NamedSharding(mesh, spec)
        x, y = jax.device_put((images, labels), sharding)
        found = attack(Network(), x, y, budget, key=key)
        assert len(found.sharding.device_set) == 2
        np.testing.assert_allclose(found, expected, atol=1e-6)
        if kind == "Explicit":
            with pytest.raises(ValueError, match="mesh with Auto axes"):
                eqx.filter_jit(attack)(Network(), x, y, budget, key=key)


# Compilation.


class Counting(Network):
    """Counts how often it is traced."""

    traces: list = eqx.field(static=True)

    def __init__(self, traces):
        super().__init__()
        self.traces = traces

    def __call__(self, images):
        self.traces.append(images.shape)
        return super().__call__(images)


class Traces(list):
    """A list that is a static part of a module."""

    def __hash__(self):
        return id(self)

    __eq__ = object.__eq__


@pytest.mark.parametrize("name", slow_but(ATTACKS, "pgd", "fab-t"))
def test_eager_calls_compile_once(name):
    model = Counting(Traces())
    images, labels = problem()
    attack, budget = build(name), Budget("l2", 0.05)
    calls = [lambda x, key: attack(model, x, labels, budget, key=key)]
    if isinstance(attack, AbstractFAB):
        near = lambda x, key: attack.nearest(model, x, labels, "l2", key=key)[0]
        calls.append(near)
    if name == "pgd":
        assert isinstance(attack, attacks.PGD)
        calls.append(lambda x, key: attack.from_keys(model, x, labels, budget, key))
    for i, call in enumerate(calls):
        keys = [
            jr.split(jr.key(k), 6) if name == "pgd" and i else jr.key(k) for k in (0, 1)
        ]
        other = jnp.flip(images, axis=1)
        call(images, keys[0])
        traced = len(model.traces)
        assert traced > 0
        with compilations() as seen:
            call(other, keys[1]).block_until_ready()
        assert len(model.traces) == traced and seen == []


def test_the_count_of_compilations_counts():
    with compilations() as seen:
        jax.jit(lambda x: x * 3 + len(seen))(jnp.arange(7.0)).block_until_ready()
    assert len(seen) >= 1


def test_attacks_become_part_of_a_program_that_is_traced():
    """As in training: the model's weights are traced, and a function holds them."""
    images, labels = problem()

    @eqx.filter_jit
    def attacked(model):
        plain = lambda x: model(x)
        return attack(plain, images, labels, BUDGET, key=jr.key(0))

    model, attack = Network(), attacks.PGD(steps=2)
    expected = attack(model, images, labels, BUDGET, key=jr.key(0))
    with jax.checking_leaks():
        np.testing.assert_allclose(attacked(model), expected, atol=1e-6)
