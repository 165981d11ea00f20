"""Checks for common faults that make robust accuracy look better than it is.

Each returns plain data: the measurements, a `summary` of them in words, and `flags`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.attacks import Budget, Untargeted
from jnode.attacks.losses import cross_entropy, logits_of, prediction
from jnode.evaluation.gradient_checks import adjoint as adjoint
from jnode.evaluation.gradient_checks import gradient as gradient
from jnode.evaluation.gradient_checks import held_steps as held_steps
from jnode.evaluation.transfers import Transfer, ascend, rescaled
from jnode.models.batched import batched
from jnode.solvers import Solver

if TYPE_CHECKING:
    from jnode.models import ODEClassifier

ROUNDING = 1e-4
"""How much logits may differ, relative to the largest: the compiled programs for other
batch sizes sum in another order."""


def batch_independence(
    model: Callable, images: ArrayLike, *, samples: int = 16, seed: int = 0
) -> dict[str, Any]:
    """Whether an image's logits depend on the rest of its batch (cross-sample
    coupling).

    The same images are evaluated in another order, among other images, and alone. A
    solver that chooses its steps for a whole batch makes one image's prediction depend
    on the others, so that a measurement of it says nothing about the image itself. With
    separate step control for each sample there is no such effect.

    **Arguments:** a map from a batch of images to logits; images [n, height, width,
    channels], of which the first `samples` are used (four of them alone); the seed of
    the other images.

    **Returns:** for each comparison, the fraction of predictions that change and the
    largest relative change of the logits; a summary and flags.
    """
    x = jnp.asarray(images)[:samples]
    n = len(x)
    here = np.asarray(logits_of(model, x))
    scale = max(1.0, float(np.nanmax(np.abs(here))))
    key = jr.key(seed)
    # Other images that are hard to solve for: noise of full contrast.
    noise = jr.bernoulli(key, 0.5, x.shape).astype(x.dtype)
    half = -(-n // 2)
    first = jnp.concatenate([x[:half], noise[half:]])
    second = jnp.concatenate([noise[:half], x[half:]])
    others = np.concatenate(
        [
            np.asarray(logits_of(model, first))[:half],
            np.asarray(logits_of(model, second))[half:],
        ]
    )
    alone = [np.asarray(logits_of(model, x[i : i + 1]))[0] for i in range(min(4, n))]
    comparisons = {
        "another order": np.asarray(logits_of(model, x[::-1]))[::-1],
        "among other images": others,
        "alone": np.stack(alone),
    }
    rows, flags = {}, []
    for name, there in comparisons.items():
        ours = here[: len(there)]
        changed = float(np.mean(np.argmax(there, axis=1) != np.argmax(ours, axis=1)))
        apart = float(np.nanmax(np.abs(there - ours), initial=0.0)) / scale
        rows[name] = {"changed": changed, "logits": float(f"{apart:.3g}")}
        if changed > 0 or apart > ROUNDING:
            flags.append(
                f"batch dependence: {name}, {changed:.1%} of the predictions change "
                f"and logits move by up to {apart:.1e} of the largest, so one image's "
                "result depends on the others: solve each sample by itself."
            )
    changed = max(row["changed"] for row in rows.values())
    apart = max(row["logits"] for row in rows.values())
    summary = (
        f"{n} images evaluated in another order, among other images and alone: "
        f"{changed:.1%} of the predictions change, logits by at most {apart:.1e} of "
        "the largest."
    )
    return {"comparisons": rows, "num_examples": n, "summary": summary, "flags": flags}


SENSITIVE = 0.01
"""The fraction of changed predictions above which an adaptive solver is flagged."""


@eqx.filter_jit
def classes(model, images):
    """The class given to each image of a batch by a model of single images."""
    return jnp.argmax(jax.vmap(model)(images), axis=1)


def tolerance(
    model: "ODEClassifier", images: ArrayLike, attacked: ArrayLike
) -> dict[str, Any]:
    """The fraction of predictions that change when the solve is finer or coarser.

    An adaptive solver's tolerances are divided or multiplied by ten, fixed steps halved
    or doubled. A fixed-step model is defined by its steps, so for it the fractions
    measure how much the discretisation matters, and are never a flag. An adaptive
    solver is supposed to compute the flow, and is flagged if a finer solve disagrees.

    **Arguments:** the model; clean images and attacked ones, [n, height, width,
    channels].

    **Returns:** a row for each other solver; a summary and flags.
    """
    clean, attacked = (jnp.asarray(x) for x in (images, attacked))
    here = [np.asarray(classes(model, x)) for x in (clean, attacked)]
    rows, flags, said = {}, [], []
    for name, factor in (("finer", 10.0), ("coarser", 0.1)):
        try:
            solver = rescaled(model.solver, factor)
            other = model.with_solver(solver)
            there = [np.asarray(classes(other, x)) for x in (clean, attacked)]
        except ValueError as error:
            # One step has no coarser, and each segment of a field needs a step.
            rows[name] = {"solver": None, "reason": str(error)}
            continue
        shares = [float(np.mean(a != b)) for a, b in zip(here, there, strict=True)]
        rows[name] = {
            "solver": str(solver),
            "changed": shares[0],
            "changed_attacked": shares[1],
        }
        said.append(
            f"{solver}: {shares[0]:.1%} of the clean and {shares[1]:.1%} of the "
            "attacked images change class"
        )
        # A single image near a boundary is allowed.
        allowed = max(SENSITIVE, 1 / len(clean))
        if model.solver.adaptive and name == "finer" and max(shares) > allowed:
            flags.append(
                f"tolerance: solved with a tenth of the tolerances, {shares[0]:.1%} of "
                f"the predictions change on clean and {shares[1]:.1%} on attacked "
                "images: the solver's error, and not the flow, decides them."
            )
    return {
        **rows,
        "num_examples": len(clean),
        "summary": f"{'; '.join(said) or 'No other steps are possible'}.",
        "flags": flags,
    }


GAP = 0.02
"""The difference in robust accuracy above which there is a flag."""


@eqx.filter_jit
def _judge(model, images, labels):
    logits = model(images)
    return cross_entropy(logits, labels), prediction(logits) == labels


def convergence(
    model: Callable,
    images: ArrayLike,
    labels: ArrayLike,
    budget: Budget,
    *,
    key: PRNGKeyArray,
    steps: tuple[int, int] = (20, 1000),
) -> dict[str, Any]:
    """Loss and accuracy under PGD with few steps and with many, on the same images.

    **Arguments:** a map from a batch of images to logits; one batch of images [n,
    height, width, channels] and labels [n]; the budget, with a single epsilon; the key
    of the random starts; the two numbers of steps.

    **Returns:** a row for each; a summary; and a flag if they disagree. If many steps
    succeed on far more images, few steps had not converged; if on fewer, gradients
    mislead.
    """
    x, y = jnp.asarray(images), jnp.asarray(labels)
    norm, epsilon, rows = budget.norm, float(budget.epsilon), []
    for count in steps:
        attack = Transfer(source=model, via="itself", steps=count)
        adversarial = attack(model, x, y, budget, key=key)
        budget.check(attack.name, x, adversarial)
        losses, right = _judge(model, adversarial, y)
        rows.append(
            {
                "steps": count,
                "loss": float(np.nan_to_num(np.mean(losses), nan=1e9, posinf=1e9)),
                "robust_accuracy": float(np.mean(right)),
            }
        )
    few, many = rows
    more = few["robust_accuracy"] - many["robust_accuracy"]
    flags = []
    if more > GAP:
        flags.append(
            f"not converged: PGD-{steps[1]} succeeds on {more:.1%} more images than "
            f"PGD-{steps[0]} at {norm} {epsilon:.3g}."
        )
    if more < -GAP:
        flags.append(
            f"masked gradients: PGD-{steps[1]} succeeds on {-more:.1%} fewer images "
            f"than PGD-{steps[0]} at {norm} {epsilon:.3g}."
        )
    summary = " and ".join(
        f"PGD-{row['steps']} leaves a robust accuracy of "
        f"{row['robust_accuracy']:.1%} at a mean loss of {row['loss']:.3g}"
        for row in rows
    )
    return {
        "rows": rows,
        "norm": norm,
        "epsilon": round(epsilon, 7),
        "num_examples": len(x),
        "summary": f"At {norm} {epsilon:.3g}, {summary}, of {len(x)} images.",
        "flags": flags,
    }


TWICE = 2.0
"""The ratio of mean NFE above which a slowdown attack is flagged."""


class StepCountSurrogate(eqx.Module):
    r"""The difference of a coarse and a finer solve, a smooth surrogate of the step
    count.

    An adaptive solver takes steps in proportion to a power of its error estimate, which
    Diffrax does not differentiate; $d = \|y_2 - y_1\|$ of $n$ and $2n$ classical
    Runge-Kutta steps grows with the same local errors, and is smooth. As the logits
    $(0, \ln d)$ with the label 0 it grows with the cross-entropy.
    """

    model: "ODEClassifier"

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch two"]:
        return jax.vmap(self.one)(images)

    def one(self, image: Float[Array, "height width channels"]) -> Float[Array, " two"]:
        n = len(self.model.jumps) + 1
        one, two = (
            self.model.with_solver(Solver("rk4", steps=k * n)).embed(image)
            for k in (1, 2)
        )
        apart = 0.5 * jnp.log(jnp.sum((two - one) ** 2) + 1e-20)
        return jnp.stack([jnp.zeros_like(apart), apart])


@eqx.filter_jit
def _stats(model, images):
    return batched(model).solution(images).stats


@eqx.filter_jit
def _costly(model, images, budget, key):
    return ascend(
        StepCountSurrogate(model),
        images,
        Untargeted(jnp.zeros(len(images), int)),
        budget,
        steps=jnp.asarray(20),
        key=key,
    )


def nfe_under_attack(
    model: "ODEClassifier",
    images: ArrayLike,
    attacked: ArrayLike,
    budget: Budget,
    *,
    key: PRNGKeyArray,
) -> dict[str, Any]:
    """Steps and NFE on clean images, on attacked ones, and under a slowdown attack.

    The slowdown attack, for adaptive solvers only, is `ascend` on
    `StepCountSurrogate`.

    **Arguments:** the model; clean images and attacked ones, [n, height, width,
    channels]; the budget of the attacked ones, in which the slowdown attack searches
    too; the key of its random start.

    **Returns:** the mean and largest number of steps and NFE for each; a summary and
    flags.
    """
    clean, attacked = (jnp.asarray(x) for x in (images, attacked))
    kinds = {"clean": clean, "attacked": attacked}
    if model.solver.adaptive:
        costly = _costly(model, clean, budget.of_each(clean), key)
        budget.check("the slowdown attack", clean, costly)
        kinds["slowed"] = costly
    rows = {}
    for name, x in kinds.items():
        stats = jax.device_get(_stats(model, x))
        rows[name] = {
            "nfe": float(np.mean(stats["nfe"])),
            "nfe_largest": int(np.max(stats["nfe"])),
            "steps": float(np.mean(stats["num_steps"])),
            "steps_largest": int(np.max(stats["num_steps"])),
        }
    nfe = {name: row["nfe"] for name, row in rows.items()}
    most = max(nfe.values()) / nfe["clean"]
    flags = []
    if most > TWICE:
        flags.append(
            f"slowdown: images within {budget.norm} {float(budget.epsilon):.3g} need "
            f"{most:.1f} times the evaluations of clean ones."
        )
    said = ", ".join(
        f"{nfe[name]:.1f} (at most {rows[name]['nfe_largest']}) on {text}"
        for name, text in (
            ("clean", "clean images"),
            ("attacked", "attacked ones"),
            ("slowed", "images made to be costly"),
        )
        if name in nfe
    )
    return {
        **rows,
        "norm": budget.norm,
        "epsilon": round(float(budget.epsilon), 7),
        "num_examples": len(clean),
        "summary": f"Evaluations of the vector field per image: {said}.",
        "flags": flags,
    }
