"""Evaluation: robust samples are attacked, finished results kept, budgets held."""

import gc
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jnode
from jnode.attacks import (
    APGDCE,
    PGD,
    Budget,
    RandomModel,
    Square,
    Trial,
    Untargeted,
    loop,
)
from jnode.attacks.losses import loss_and_gradient
from jnode.evaluation import (
    Store,
    Transfer,
    evaluate,
    interval,
    plan,
    surrogates,
)
from jnode.evaluation.protocols import PROTOCOLS, budgets
from jnode.evaluation.store import described, fingerprint
from jnode.evaluation.transfers import rescaled
from jnode.models.batched import batched
from jnode.sharding import Sharded, data_mesh
from tests.helpers import small_model

ATTACKS = [
    Trial(PGD(steps=3), Budget("linf", 0.02)),
    Trial(Square(steps=5), Budget("linf", 0.02)),
    Trial(PGD(steps=3), Budget("linf", 0.05)),
    Trial(PGD(steps=3), Budget("l2", 0.3)),
]
BATCH = 16


def make_problem():
    """A model, 40 images, and labels of which the first four are wrong."""
    model = batched(small_model(jr.key(0)).bake())
    images = np.asarray(jr.uniform(jr.key(1), (40, 8, 8, 1)))
    labels = np.array(jnp.argmax(model(jnp.asarray(images)), axis=1))
    labels[:4] = (labels[:4] + 1) % 4
    return model, images, labels


@pytest.fixture(scope="module")
def problem():
    return make_problem()


def run(problem, attacks=ATTACKS, **kwargs):
    model, images, labels = problem
    settings = {"batch_size": BATCH, "progress": False, "successive": True, **kwargs}
    return evaluate(model, images, labels, attacks, **settings)


@pytest.fixture(scope="module")
def found(problem):
    return run(problem)


def test_only_robust_samples_are_attacked_and_rows_never_rise(found):
    rows = found.summary["attacks"]
    assert found.summary["clean_accuracy"] == 36 / 40
    left = np.arange(4, 40)
    for attacked, row in zip(found.outcome.attacked[:3], rows, strict=False):
        assert (attacked.samples == left).all()
        assert set(attacked.successes) <= set(left)
        left = np.setdiff1d(left, attacked.successes)
        assert row["robust_accuracy"] == len(left) / 40
        assert (row["attacked"], row["successes"]) == (
            len(attacked.samples),
            len(attacked.successes),
        )
    assert 0 < len(left) < 36
    # Another norm begins anew; wrong predictions are never robust.
    assert (found.outcome.attacked[3].samples == np.arange(4, 40)).all()
    assert not found.outcome.robust[3][:4].any()
    worst = {
        (r["norm"], r["epsilon"]): r["robust_accuracy"]
        for r in found.summary["worst_case"]
    }
    assert worst["linf", 0.05] == rows[2]["robust_accuracy"] <= worst["linf", 0.02]


def test_stored_images_prove_the_accuracy(problem, found):
    model, images, labels = problem
    for attack, attacked in zip(ATTACKS, found.outcome.attacked, strict=True):
        clean = images[attacked.successes]
        assert np.all((attacked.images >= 0) & (attacked.images <= 1))
        order = np.inf if attack.norm == "linf" else 2
        moved = (attacked.images - clean).astype(np.float64).reshape(-1, 64)
        lengths = np.linalg.norm(moved, order, axis=1)
        assert np.all(lengths <= float(attack.epsilon) + 1e-6)
        if not len(attacked.successes):
            continue
        predicted = np.argmax(model(jnp.asarray(attacked.images)), axis=1)
        assert (predicted != labels[attacked.successes]).all()


def test_one_compilation_for_ragged_batches_and_budgets(problem):
    model, images, labels = problem
    traces = []

    class Counting(eqx.Module):
        inner: Callable

        def __call__(self, x):
            traces.append(x.shape)
            return self.inner(x)

    attacks = [
        (PGD(steps=steps), Budget("linf", epsilon))
        for steps, epsilon in ((2, 0.02), (5, 0.03), (2, 0.04))
    ]
    one = attacks[:1]
    run((Counting(model), images[:32], labels[:32]), one)
    whole = len(traces)
    traces.clear()
    # Now batches of 16, 16 and 8 clean ones, and whatever is left at three budgets:
    # all is compiled.
    run((Counting(model), images, labels), attacks)
    assert traces == [] and whole > 0


class Once(PGD):
    """Raises when it is run in an evaluation: an interruption."""

    def search(self, model, images, goal, clean, budget, *, key):
        raise KeyboardInterrupt


def arguments(problem, attacks):
    return {"the data": fingerprint(*problem[1:]), "the attacks": described(attacks)}


def test_an_interrupted_evaluation_goes_on(problem, found, tmp_path, monkeypatch):
    folder = tmp_path / "evaluation"
    with Store(folder, arguments(problem, ATTACKS)) as store:
        assert store.message == ""
        stopped = [*ATTACKS[:2], (Once(steps=3), ATTACKS[2].budget), ATTACKS[3]]
        with pytest.raises(KeyboardInterrupt):
            run(problem, stopped, keep=store.attack)
    done, real = [], loop._run
    monkeypatch.setattr(loop, "_run", lambda a, *r: done.append(a) or real(a, *r))
    # As if nothing had happened; and the third time nothing is left to do.
    same = lambda e: [
        {k: v for k, v in row.items() if k != "seconds"} for row in e.summary["attacks"]
    ]
    with Store(folder, arguments(problem, ATTACKS)) as store:
        assert "2 finished attacks" in store.message
        resumed = run(problem, keep=store.attack)
        assert done == ATTACKS[2:]
        assert same(resumed) == same(found)
        assert run(problem, keep=store.attack).summary == resumed.summary
        assert done == ATTACKS[2:]
        # A damaged part is made anew, and only that.
        (folder / "attack-001.npz").write_bytes(b"PK half a file")
        assert same(run(problem, keep=store.attack)) == same(found)
        assert done[2:] == ATTACKS[1:2]
    # Another attack, and nothing of the old is believed.
    other = [*ATTACKS[:3], Trial(PGD(steps=3), Budget("l2", 0.4))]
    with Store(folder, arguments(problem, other)) as store:
        assert store.message.startswith("Starting anew: the attacks changed")
        assert not [*folder.glob("attack-*")]


def test_a_folder_belongs_to_one_evaluation_at_a_time(problem, tmp_path):
    """Another, of other arguments, destroys nothing of it, in this process or not."""
    folder = tmp_path / "evaluation"
    mine, other = arguments(problem, ATTACKS), arguments(problem, ATTACKS[:1])
    with Store(folder, mine) as store:
        store.check("cost", lambda: {"forward": 1.0})
        for theirs in (mine, other):
            with pytest.raises(RuntimeError, match="in use by another evaluation"):
                Store(folder, theirs)
        code = (
            "import sys; from jnode.evaluation import Store; "
            "Store(sys.argv[1], {'the data': 'other'})"
        )
        command = [sys.executable, "-c", code, str(folder)]
        child = subprocess.run(command, capture_output=True, text=True)
        assert child.returncode == 1 and str(folder) in child.stderr
        assert "in use by another evaluation" in child.stderr
        assert store.check("cost", lambda: pytest.fail("it was finished"))
    with Store(folder, other) as store:
        assert store.message.startswith("Starting anew")
        assert not (folder / "check-cost.json").exists()
    # One that is dropped unclosed holds nothing.
    for _ in range(2):
        Store(folder, other)
        gc.collect()


CHILD = """
import sys
from typing import Any
from jnode.attacks import PGD, Budget
from jnode.evaluation import Store
from tests.test_evaluation import ATTACKS, arguments, make_problem, run
problem = make_problem()
attacks = [*ATTACKS[:1], (PGD(steps=100_000_000), Budget("linf", 0.02))]
store = Store(sys.argv[1], arguments(problem, ATTACKS))
run(problem, attacks, keep=store.attack)
"""


@pytest.mark.slow
def test_a_killed_evaluation_leaves_only_whole_files(problem, found, tmp_path):
    folder = tmp_path / "evaluation"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)], cwd=Path(__file__).parent.parent
    )
    try:
        until = time.time() + 200
        while not (folder / "attack-000.npz").exists():
            assert child.poll() is None and time.time() < until
            time.sleep(0.1)
        child.terminate()
        assert child.wait(60) != 0
    finally:
        child.kill()
    # The lock ended with the process.
    with Store(folder, arguments(problem, ATTACKS)) as store:
        assert "1 finished attacks" in store.message
        kept = store.attack(0, lambda: pytest.fail("it was finished"))
    assert (kept.successes == found.outcome.attacked[0].successes).all()
    assert kept.images == pytest.approx(found.outcome.attacked[0].images)


def test_described_attacks_tell_all_that_matters(problem):
    model, *_ = problem
    tell = lambda attack, *budget: described(
        [Trial(attack, Budget(*(budget or ("linf", 0.1))))]
    )
    one, through = tell(PGD(steps=3)), Transfer(source=model, via="rk4x8", steps=3)
    assert one == tell(PGD(steps=3))
    for attack in (PGD(steps=4), APGDCE(steps=3), through):
        assert tell(attack) != one
    for budget in (("l2", 0.1), ("linf", 0.2), ("linf", [0.1, 0.2])):
        assert tell(PGD(steps=3), *budget) != one
    arrays = np.zeros(3), np.zeros(3, np.float32), np.zeros((3, 1))
    assert len({fingerprint(a) for a in arrays}) == 3


# Random models.


class Inside(eqx.Module):
    """Another classifier around a classifier."""

    model: Callable

    def __call__(self, images):
        return 2 * self.model(images)


@pytest.mark.parametrize("wrap", [lambda m: m, Inside], ids=["itself", "wrapped"])
@pytest.mark.slow
def test_a_mesh_changes_nothing_for_a_random_model(problem, wrap):
    """Fresh draws at each step, the same with two devices, in a wrapper or not."""
    weight = jr.normal(jr.key(0), (64, 4))
    seen = []

    def noisy(images, key):
        seen.append(images.shape)
        noise = 0.5 * jr.normal(key, images.shape)
        return jnp.reshape(images + noise, (len(images), -1)) @ weight

    model = wrap(RandomModel(noisy, key=jr.key(3), draws=4))
    images = problem[1][:16]
    labels = np.asarray(jnp.argmax(model(jnp.asarray(images)), axis=1))
    attacks = [(a, Budget("linf", 0.05)) for a in (PGD(steps=3), APGDCE(steps=4))]
    options = {"batch_size": 16, "progress": False}
    assert jax.device_count() == 2
    alone, spread = (
        evaluate(model, images, labels, attacks, mesh=mesh, **options)
        for mesh in (None, data_mesh())
    )
    assert set(seen) <= {(1, 8, 8, 1), (16, 8, 8, 1)}  # whole batches are drawn for
    np.testing.assert_array_equal(alone.outcome.predictions, spread.outcome.predictions)
    assert alone.summary["clean_accuracy"] == 1
    for one, two in zip(alone.outcome.attacked, spread.outcome.attacked, strict=True):
        np.testing.assert_array_equal(one.predictions, two.predictions)
        np.testing.assert_allclose(one.shown, two.shown, atol=1e-5)


def test_draws_of_gradients_are_fresh_inside_wrappers():
    def noisy(images, key):
        noise = jr.normal(key, (1, 3))
        return jnp.broadcast_to(noise, (len(images), 3)) * jnp.sum(images)

    images, labels = jnp.full((2, 2, 2, 1), 0.5), jnp.zeros(2, int)
    random = RandomModel(noisy, key=jr.key(3), draws=2)
    for model in (random, Inside(random), Sharded(random, data_mesh())):
        draw = eqx.filter_jit(
            lambda key, model=model: loss_and_gradient(
                model, images, Untargeted(labels).loss, key=key
            )
        )
        one, other, again = (draw(jr.key(k))[0] for k in (0, 1, 0))
        assert (one == again).all() and jnp.abs(one - other).min() > 1e-3


# Transfers.


def test_transfers_attack_the_source_and_are_judged_by_the_model(problem):
    model, images, labels = problem
    blind = lambda x: model(jnp.round(x * 255) / 255)  # no gradient anywhere
    through = Transfer(source=model, via="smooth", steps=5)
    both = [(attack, Budget("linf", 0.05)) for attack in (PGD(steps=5), through)]
    result = run((blind, images, labels), both)
    rows = result.summary["attacks"]
    assert [r["via"] for r in rows] == ["", "smooth"]
    assert rows[1]["successes"] > 2 * rows[0]["successes"]
    assert any("transfer beats white-box" in f for f in result.summary["flags"])
    assert (
        result.summary["worst_case"][0]["robust_accuracy"]
        == (rows[1]["robust_accuracy"])
    )


def test_surrogates_of_fixed_and_adaptive_models(getkey):
    from jnode import Solver

    x, y = jr.uniform(getkey(), (6, 8, 8, 1)), jnp.arange(6) % 4
    fixed = small_model(getkey(), segments=(2,))
    assert list(surrogates(fixed, x, y)) == ["rk4x8", "eulerx4", "rk4x2", "encoder"]
    adaptive = fixed.with_solver(Solver("dopri5", rtol=1e-3, atol=1e-4))
    names = list(surrogates(adaptive, x, y))
    assert names[1] == "dopri5(rtol=0.0001, atol=1e-05)" and "bosh3" in names[2]
    back = fixed.with_solver(Solver("euler", steps=2, adjoint="backsolve"))
    assert "eulerx2, direct adjoint" in surrogates(back, x, y, ("encoder",))
    with pytest.raises(ValueError, match="fixed, finer, other, encoder"):
        surrogates(fixed, x, y, ("nobody",))


def memory(model, images):
    """Bytes that XLA sets aside for the logits, and for the gradient of an attack."""
    arrays, static = eqx.partition(model, eqx.is_array)
    labels = jnp.zeros(len(images), int)

    def logits(arrays, images):
        return eqx.combine(arrays, static)(images)

    def gradient(arrays, images):
        whole = eqx.combine(arrays, static)
        return loss_and_gradient(whole, images, Untargeted(labels).loss)[2]

    programs: list[Any] = [
        jax.jit(function).lower(arrays, images).compile()
        for function in (logits, gradient)
    ]
    return [found.memory_analysis().temp_size_in_bytes for found in programs]


@pytest.mark.slow
def test_memory_of_an_adaptive_evaluation_does_not_grow_with_the_limit_of_steps():
    images = jnp.zeros((16, 8, 8, 1))
    few, many = (
        memory(batched(small_model(jr.key(0), solver=solver).bake()), images)
        for solver in (
            jnode.Solver("bosh3", max_steps=64),
            jnode.Solver("bosh3", max_steps=4096),
        )
    )
    # The states of 4096 steps are 16 MB. Only what is known of each step may grow.
    assert many[0] < few[0] + 500_000, (few, many)
    assert many[1] < few[1] + 3_000_000, (few, many)


@pytest.mark.slow
def test_the_finer_surrogate_needs_little_more_memory():
    """As preset odenet: a free field, solved adaptively, sample by sample."""
    config = jnode.ModelConfig(
        "free", encoder="conv", features=8, time=True, group_norm=True, unit_norm=False
    )
    solver = jnode.Solver("dopri5")
    model = jnode.build(config, solver, image_shape=(8, 8, 1), classes=4, key=jr.key(0))
    images, labels = jnp.zeros((16, 8, 8, 1)), jnp.zeros(16, int)
    (finer,) = surrogates(model, images, labels, ("finer",)).values()
    ours = memory(finer, images)[1]
    assert ours < 1.5 * memory(batched(model), images)[1]


def test_the_finer_surrogate_has_steps_enough_and_no_more(getkey):
    """Heun, of the lowest order, takes the most steps more for a tenth of the error."""
    model = small_model(getkey(), "ortho", jnode.Solver("heun", rtol=1e-4, atol=1e-5))
    finer = rescaled(model.solver, 10)
    assert finer.tolerances == pytest.approx((1e-5, 1e-6))
    assert finer.max_steps == 810  # 256 times the root of 10
    images = jr.uniform(getkey(), (4, 8, 8, 1))
    steps = [
        int(jnp.max(jnode.batched(m).solution(images).stats["num_steps"]))
        for m in (model, model.with_solver(finer))
    ]
    assert steps[0] > 10 and steps[1] <= steps[0] * finer.max_steps / 256 * 1.1


def test_the_encoder_surrogate_is_a_nearest_mean(getkey):
    model = small_model(getkey())
    x = jnp.concatenate([jnp.full((3, 8, 8, 1), 0.2), jnp.full((3, 8, 8, 1), 0.8)])
    x = x + 0.01 * jr.normal(getkey(), x.shape)
    y = jnp.asarray([1, 1, 1, 3, 3, 3])
    source = surrogates(model, x, y, ("encoder",))["encoder"]
    assert (jnp.argmax(source(x)[:, jnp.asarray([1, 3])], axis=1) == y // 2).all()


# Protocols.


def test_protocols_know_their_budgets_and_leave_out_what_cannot_be(problem):
    told = lambda *wanted: [
        (b.norm, pytest.approx(float(b.epsilon))) for b in budgets(*wanted)
    ]
    assert told("mnist")[:3] == [("linf", 0.1), ("linf", 0.2), ("linf", 0.3)]
    assert told("cifar10")[2] == ("l2", 36 / 255)
    assert told("mnist", "l2") == [("l2", 0.5), ("l2", 1.0)]
    assert told("mnist", None, [0.2, 0.05]) == [("linf", 0.05), ("linf", 0.2)]
    with pytest.raises(ValueError, match="linf, l2"):
        budgets("mnist", "l7")
    model, *_ = problem
    budget = [Budget("linf", 0.1)]
    planned = plan(PROTOCOLS["standard"], budget, {"x": model}, classes=10)
    some = [trial.attack for trial in planned]
    names = [a.name for a in some]
    assert names == ["apgd-ce", "apgd-t", "fab-t", "square", "pgd"]
    assert some[-1].via == "x" and some[1].restarts == 9 and some[3].steps == 5000
    few = plan(PROTOCOLS["standard"], budget, {}, classes=3)
    assert "apgd-t" not in [trial.attack.name for trial in few]


def test_interval_is_wilson_s():
    """Against the roots of |p - share| = z sqrt(p (1 - p) / n), and its ends."""
    z = 1.959963984540054
    for count, total in ((0, 200), (109, 200), (500, 500), (1, 3)):
        low, high = interval(count, total)
        share = count / total
        assert 0 <= low <= share <= high <= 1
        for p in (low, high):
            assert abs(abs(p - share) - z * (p * (1 - p) / total) ** 0.5) < 1e-9
    for count, total in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="count must be between 0"):
            interval(count, total)
