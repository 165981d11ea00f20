"""Transferred attacks: made on a surrogate model, evaluated on another one."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jnode.attacks import AbstractAttack, AbstractGoal, Budget
from jnode.attacks.losses import Classifier, Images, loss_and_gradient
from jnode.attacks.norms import choose
from jnode.attacks.simple import traced_steps
from jnode.models.batched import batched
from jnode.solvers import Solver

if TYPE_CHECKING:
    from jnode.models import ODEClassifier

SURROGATES = ("fixed", "finer", "other", "encoder")
"""The kinds that `surrogates` makes; "adjoint" is added where it differs."""
FIXED_STEPS = 8


class Transfer(AbstractAttack):
    """PGD on the loss of the surrogate `source` instead of the attacked model's.

    A model with masked gradients may misclassify images that were made on a surrogate
    with useful gradients (Papernot et al., 2016; Athalye et al., ICML 2018). See
    `ascend`.

    **Arguments:** as for any attack, and `source`, a map from a batch of images to
    logits, and `via`, its name.
    """

    name: ClassVar[str] = "pgd"
    source: Classifier = eqx.field(kw_only=True)
    via: str = eqx.field(static=True, kw_only=True)
    steps: Int[Array, ""] = eqx.field(default=40, kw_only=True, converter=traced_steps)

    def search(self, model, images, goal, clean, budget, *, key):
        return ascend(
            self.source,
            images,
            goal,
            budget,
            steps=self.steps,
            restarts=self.restarts,
            key=key,
        )


class NearestMean(eqx.Module):
    r"""A classifier of the encoder's output alone: $z_c = -\|e(x) - m_c\|^2 / s$.

    $m_c$ is the mean of the encoded images of class $c$ and $s$ their mean squared
    distance from it, so that logits have the scale of one.
    """

    encoder: Callable
    means: Float[Array, "classes features"]
    scale: Float[Array, ""]

    def __call__(
        self, image: Float[Array, "height width channels"]
    ) -> Float[Array, " classes"]:
        code = self.encoder(image).ravel()
        return -jnp.sum((code[None] - self.means) ** 2, axis=1) / self.scale


@eqx.filter_jit
def nearest_mean(
    encoder: Callable,
    images: Float[Array, "n height width channels"],
    labels: Int[Array, " n"],
    classes: int,
) -> NearestMean:
    """The nearest-mean classifier on a model's encoder, with means from these
    images."""
    codes = jax.vmap(lambda x: encoder(x).ravel())(images)
    member = jax.nn.one_hot(labels, classes)
    counts = jnp.maximum(jnp.sum(member, axis=0), 1)
    means = jnp.matmul(member.T, codes) / counts[:, None]
    scale = jnp.mean(jnp.sum((codes - means[labels]) ** 2, axis=1))
    return NearestMean(encoder, means, jnp.maximum(scale, 1e-12))


def surrogates(
    model: "ODEClassifier",
    images: ArrayLike,
    labels: ArrayLike,
    kinds: Sequence[str] = SURROGATES,
) -> dict[str, Classifier]:
    """Surrogate models that share weights with `model`, by kind.

    **Arguments:**

    - `model`: the model in question.
    - `images`, `labels`: [n, height, width, channels] and [n], for the means of the
        kind "encoder".
    - `kinds`: some of "fixed" (eight or more classical Runge-Kutta steps), "finer" (a
        tenth of the tolerances, or twice the steps), "other" (another method) and
        "encoder" (a nearest-mean classifier on the encoder's output, without the ODE).

    **Returns:** classifiers of batches. All of them differentiate the numerical solve.
    If the model's adjoint is continuous, its own solve, differentiated in this way, is
    one more surrogate ("adjoint").

    **Raises:** `ValueError` for an unknown kind.
    """
    for kind in kinds:
        if kind not in SURROGATES:
            known = ", ".join(SURROGATES)
            raise ValueError(f"kinds must be among {known}, not {kind!r}.")
    found: dict[str, Classifier] = {}
    own = dataclasses.replace(model.solver, adjoint="direct")
    if model.solver.adjoint == "backsolve":
        found[f"{own}, direct adjoint"] = batched(model.with_solver(own))
    segments = len(model.jumps) + 1
    makers = {
        "fixed": lambda: Solver("rk4", steps=segments * -(-FIXED_STEPS // segments)),
        "finer": lambda: rescaled(own, 10),
        "other": lambda: _another(own),
    }
    for kind in kinds:
        if kind == "encoder":
            substitute = nearest_mean(
                model.encode,
                jnp.asarray(images),
                jnp.asarray(labels),
                len(model.head.bias),
            )
            found["encoder"] = batched(substitute)
        else:
            solver = makers[kind]()
            if str(solver) != str(own):
                found[str(solver)] = batched(model.with_solver(solver))
    return found


def rescaled(solver: Solver, factor: float) -> Solver:
    """The same method, finer for a `factor` above 1 and coarser below.

    An adaptive solver's tolerances are divided by it; for a fixed-step solver every
    step is halved (above 1), or every two steps are joined (below).

    **Raises:** `ValueError` for coarser steps if there is only one.
    """
    if solver.adaptive:
        rtol, atol = (tolerance / factor for tolerance in solver.tolerances)
        # Smaller tolerances need a larger limit of steps: a method of order p takes
        # factor^(1/p) times as many, and the lowest order is 2. No more than that,
        # since memory may be reserved for all of them.
        longer = math.ceil(solver.max_steps * max(1.0, factor) ** 0.5)
        return dataclasses.replace(solver, rtol=rtol, atol=atol, max_steps=longer)
    shares = solver.shares.tolist()
    if factor > 1:
        middle = [(a + b) / 2 for a, b in itertools.pairwise(shares)]
        shares = sorted([*shares, *middle])
    elif len(shares) < 3:
        raise ValueError(
            f"solver must have at least 2 steps to be made coarser, not {solver}."
        )
    else:
        shares = [*shares[:-1:2], 1.0]
    if solver.grid is None:
        return dataclasses.replace(solver, steps=len(shares) - 1)
    return dataclasses.replace(solver, grid=tuple(shares), steps=None)


def _another(solver: Solver) -> Solver:
    if solver.adaptive:
        return dataclasses.replace(
            solver, name="bosh3" if solver.name != "bosh3" else "dopri5"
        )
    name = {"rk4": "heun"}.get(solver.name, "rk4")
    return dataclasses.replace(solver, name=name)


def ascend(
    model: Classifier,
    images: Images,
    goal: AbstractGoal,
    budget: Budget,
    *,
    steps: Int[Array, ""],
    restarts: int = 1,
    key: PRNGKeyArray,
) -> Images:
    """PGD that goes on past the first adversarial image.

    Adversarial iterates are preferred to others and, among equals, the one with the
    larger loss. An ordinary attack may stop at the decision boundary; an image that
    should also be misclassified by another model, or whose loss is compared, must go
    far beyond it.

    **Arguments:** the model whose loss is maximised; images [n, height, width,
    channels]; the goal; a budget with an epsilon for each image; steps, restarts and
    key as for `jnode.attacks.PGD`.
    """
    length = 2.5 * budget.epsilon / steps.astype(images.dtype)

    def keep(best, x):
        losses, logits, gradient = loss_and_gradient(model, x, goal.loss)
        success = goal.reached(logits)
        better = jnp.where(success == best[1], losses > best[2], success)
        return choose(better, (x, success, losses), best), gradient

    def step(_, carry):
        x, gradient, best = carry
        x = budget.step(x, gradient, length, images)
        best, gradient = keep(best, x)
        return x, gradient, best

    def restart(best, key):
        x = budget.random_start(images, key)
        best, gradient = keep(best, x)
        *_, best = jax.lax.fori_loop(0, steps, step, (x, gradient, best))
        return best, None

    n = len(images)
    best = (images, jnp.zeros(n, bool), jnp.full(n, -jnp.inf, images.dtype))
    best, _ = jax.lax.scan(restart, best, jr.split(key, restarts))
    return best[0]
