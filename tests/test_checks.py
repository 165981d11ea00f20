"""The checks flag what is wrong, and nothing else."""

import itertools
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from jnode import ODEClassifier, Solver
from jnode.attacks import Budget
from jnode.evaluation import checks, evaluate
from jnode.evaluation.accuracy import beaten_white_box, weak_beats_strong
from jnode.evaluation.transfers import rescaled
from jnode.models.batched import batched
from tests.helpers import slow_but, small_model

ADAPTIVE = Solver("bosh3", rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def honest():
    model = small_model(jr.key(0)).bake()
    images = jr.uniform(jr.key(1), (24, 8, 8, 1))
    return model, images, jnp.argmax(batched(model)(images), axis=1)


@pytest.fixture(scope="module")
def adaptive(honest):
    return honest[0].with_solver(ADAPTIVE)


def codes(found):
    return [flag.split(":")[0] for flag in found["flags"]]


@pytest.mark.parametrize("solver", slow_but(["fixed", "adaptive"], "fixed"))
def test_the_gradient_of_the_solve_is_right(honest, adaptive, solver):
    model, images, labels = honest
    model = model if solver == "fixed" else adaptive
    found = checks.gradient(batched(model), images, labels, samples=4)
    assert found["precision"] == "float64" and found["flags"] == []
    assert len(found["discrepancies"]) == 4 and found["median"] < 1e-4


@pytest.mark.slow
def test_an_adaptive_gradient_is_that_of_the_steps_taken(honest):
    model, images, labels = honest
    loose = model.with_solver(Solver("heun", rtol=1e-2, atol=1e-2))
    assert checks.held_steps(loose, images, labels, samples=1) < 1e-2


class WrongGradient(eqx.Module):
    """The same values with another model's gradient."""

    values: Callable
    gradients: Callable

    def __call__(self, x):
        like = self.gradients(x)
        return like + jax.lax.stop_gradient(self.values(x) - like)


def test_a_wrong_gradient_is_flagged(honest):
    model, images, labels = honest
    other = batched(small_model(jr.key(7)).bake())
    wrong = WrongGradient(batched(model), other)
    assert (jnp.argmax(wrong(images), axis=1) == labels).all()
    found = checks.gradient(wrong, images, labels, samples=4)
    assert codes(found) == ["wrong gradient"] and found["median"] > 0.3


def test_the_discrepancy_is_the_gradients_relative_error(honest):
    model, images, labels = honest
    model = batched(model)

    def off(x):
        # A tenth of the gradient is lost, of which nothing lies in the value.
        return 0.9 * model(x) + jax.lax.stop_gradient(0.1 * model(x))

    found = checks.gradient(off, images, labels, samples=4)
    assert found["median"] == pytest.approx(0.1, rel=0.5)


def test_a_gradient_that_holds_in_no_neighbourhood_is_flagged(honest):
    model, images, labels = honest
    steps = lambda x: batched(model)(jnp.round(8 * x) / 8)
    found = checks.gradient(steps, images, labels, samples=4)
    assert codes(found) == ["shattered gradients"]
    # The gradient is right, where it is: the stairs are flat.
    assert found["median"] == 0


def test_float32_where_float64_cannot_be(honest):
    model, images, labels = honest
    # Under x64 a solve takes on the type of its times, as Diffrax's does.
    single = lambda x: batched(model)(x.astype(jnp.float32)).astype(jnp.float32)
    found = checks.gradient(single, images, labels, samples=4)
    assert found["precision"] == "float32" and 0 < found["noise"] < 0.1
    assert found["flags"] == []


def test_a_continuous_adjoint_is_flagged():
    found = checks.adjoint(Solver("rk4", steps=2, adjoint="backsolve"))
    assert codes(found) == ["continuous adjoint"]
    assert checks.adjoint(Solver("rk4", steps=2))["flags"] == []


@pytest.mark.parametrize("solver", ["fixed", "adaptive"])
def test_batch_mates_do_not_matter_with_control_per_sample(honest, adaptive, solver):
    model, images, _ = honest
    model = model if solver == "fixed" else adaptive
    found = checks.batch_independence(batched(model), images, samples=8)
    assert found["flags"] == []
    assert all(row["changed"] == 0 for row in found["comparisons"].values())


class Joint(eqx.Module):
    """One adaptive solve of the whole batch as one state, as many codes do it."""

    model: ODEClassifier

    def __call__(self, images):
        field = lambda t, y, args: jax.vmap(
            lambda s: self.model.blocks[0].field(t, s, args)
        )(y)
        solution: Any = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Bosh3(),
            0.0,
            1.0,
            None,
            jax.vmap(self.model.encode)(images),
            stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-3),
        )
        return jax.vmap(lambda s: self.model.head(s.ravel()))(solution.ys[-1])


def test_one_step_size_for_a_whole_batch_is_flagged(honest):
    model, images, _ = honest
    found = checks.batch_independence(Joint(model), images, samples=8)
    assert "batch dependence" in codes(found)


def test_tolerance_of_an_exact_and_of_a_loose_solve(honest, adaptive):
    _, images, _ = honest
    found = checks.tolerance(adaptive, images, images)
    assert found["finer"]["changed"] == 0 and found["flags"] == []
    assert found["coarser"]["solver"] == "bosh3(rtol=0.0001, atol=1e-05)"
    one = honest[0].with_solver(Solver("euler", steps=1))
    assert "2 steps" in checks.tolerance(one, images, images)["coarser"]["reason"]


def test_finer_and_coarser_steps():
    grid = Solver("rk4", grid=(0.0, 0.5, 1.0))
    assert rescaled(grid, 10).grid == (0, 0.25, 0.5, 0.75, 1)
    assert rescaled(grid, 0.1).grid == (0, 1)
    assert rescaled(Solver("euler", steps=5), 0.1).steps == 3
    assert rescaled(Solver("euler", steps=4), 10).steps == 8
    assert rescaled(ADAPTIVE, 10).tolerances == pytest.approx((1e-6, 1e-7))


@pytest.mark.slow
def test_work_under_attack(honest, adaptive):
    model, images, _ = honest
    budget = Budget("linf", 0.1)
    found = checks.nfe_under_attack(adaptive, images, images, budget, key=jr.key(0))
    assert found["clean"] == found["attacked"]
    costly, clean = found["slowed"], found["clean"]
    assert clean["nfe"] <= costly["nfe"] and clean["nfe"] <= clean["nfe_largest"]
    assert "slowed" not in checks.nfe_under_attack(
        model, images, images, budget, key=jr.key(0)
    )


def test_a_longer_attack(honest):
    model, images, labels = honest
    problem = batched(model), images, labels, Budget("linf", 0.05)
    found = checks.convergence(*problem, key=jr.key(0), steps=(5, 40))
    few, many = found["rows"]
    assert many["robust_accuracy"] <= few["robust_accuracy"] < 1
    assert few["loss"] <= many["loss"] * 1.01 and found["flags"] == []


# Outputs.


def outputs(model, images, labels):
    return evaluate(model, images, labels, [], batch_size=24, progress=False).summary


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda f: lambda x: jax.nn.softmax(f(x)), "softmax outputs"),
        (lambda f: lambda x: f(jnp.round(8 * x) / 8), "zero gradients"),
        (lambda f: lambda x: 1e6 * f(x), "zero gradients"),
        (
            lambda f: lambda x: jnp.where(x[:, :1, 0, 0] > 0.5, jnp.nan, 1) * f(x),
            "non-finite logits",
        ),
        (lambda f: lambda x: f(x)[:, :3], "too few classes"),
    ],
)
def test_outputs_that_attacks_cannot_trust(honest, spoil, code):
    model, images, _ = honest
    spoilt = spoil(batched(model))
    labels = jnp.argmax(jnp.nan_to_num(spoilt(images)), axis=1)
    assert codes(outputs(spoilt, images, labels)) == [code]


def test_random_outputs_are_flagged(honest):
    model, images, labels = honest
    count = itertools.count()
    noisy = lambda x: batched(model)(x + 0.01 * jr.normal(jr.key(next(count)), x.shape))
    assert codes(outputs(noisy, images, labels)) == ["random output"]
    assert outputs(batched(model), images, labels)["flags"] == []


# Flags from the rows of attacks.


def row(name, successes, via="", accuracy=0.5, steps=100, epsilon=0.1):
    return dict(
        name=name,
        via=via,
        norm="linf",
        epsilon=epsilon,
        steps=steps,
        successes=successes,
        robust_accuracy=accuracy,
    )


def test_square_and_transfers_beyond_the_allowance():
    rows = [row("apgd-ce", 400), row("square", 3), row("pgd", 2, via="rk4x8")]
    found = beaten_white_box(rows, 1000, successive=True)
    assert [f.split(":")[0] for f in found] == ["square beats white-box"]
    # 0.2 points of 10,000 images are 20.
    assert beaten_white_box(rows, 10_000, successive=True) == []
    rows = [row("square", 0, accuracy=0.4), row("pgd", 0, accuracy=0.5)]
    assert len(beaten_white_box(rows, 1000, successive=False)) == 1
    assert beaten_white_box(rows, 1000, successive=True) == []


def test_few_steps_must_not_beat_many():
    rows = [
        row("pgd", 0, steps=40, accuracy=0.5),
        row("fgsm", 0, steps=1, accuracy=0.3),
    ]
    assert "masked gradients" in weak_beats_strong(rows)[0]
    rows[1]["epsilon"] = 0.2
    assert weak_beats_strong(rows) == []
