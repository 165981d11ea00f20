"""What attacked images cost the solver."""

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.attacks import AbstractAttack
from jnode.attacks.one_batch import check_budget
from jnode.evaluation.ascent import ascend
from jnode.fields.piecewise import jumps
from jnode.solvers import Solver, solve

if TYPE_CHECKING:
    from jnode.models import ODEClassifier

TWICE = 2.0
"""The ratio of mean NFE above which an attack on cost is flagged."""


class Hardness(eqx.Module):
    r"""How far a coarse and a finer fixed-step solve part: a proxy of the step count.

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
        y0 = self.model.encoder(image)
        n = len(jumps(self.model.field)) + 1
        one, two = (
            solve(self.model.field, y0, Solver("rk4", steps=k * n)).y for k in (1, 2)
        )
        apart = 0.5 * jnp.log(jnp.sum((two - one) ** 2) + 1e-20)
        return jnp.stack([jnp.zeros_like(apart), apart])


@eqx.filter_jit
def _stats(model, images):
    one = lambda x: model.solution(x).stats  # noqa: E731
    return jax.vmap(one)(images)


@eqx.filter_jit
def _costly(model, images, attack, key):
    return ascend(
        Hardness(model),
        images,
        jnp.zeros(len(images), int),
        epsilon=attack.epsilon,
        norm=attack.norm,
        steps=jnp.asarray(20),
        key=key,
    )


def work(
    model: "ODEClassifier",
    images: ArrayLike,
    attacked: ArrayLike,
    attack: AbstractAttack,
    *,
    key: PRNGKeyArray,
) -> dict[str, Any]:
    """Steps and NFE on clean images, on attacked ones, and under an attack on cost.

    **Arguments:** the model; clean images and attacked ones, [n, height, width,
    channels]; the attack that made them, whose budget the attack on cost is given
    (`ascend` on `Hardness`, for adaptive solvers only); the key of its random start.

    **Returns:** mean and largest number of steps and NFE of each; words and flags.
    """
    clean, attacked = (jnp.asarray(x) for x in (images, attacked))
    kinds = {"clean": clean, "attacked": attacked}
    if model.solver.adaptive:
        kinds["attacked_for_cost"] = _costly(model, clean, attack, key)
        check_budget(attack, clean, kinds["attacked_for_cost"])
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
            f"cost: images within {attack.norm} {float(attack.epsilon):.3g} need "
            f"{most:.1f} times the evaluations of clean ones."
        )
    said = ", ".join(
        f"{nfe[name]:.1f} (at most {rows[name]['nfe_largest']}) on {text}"
        for name, text in (
            ("clean", "clean images"),
            ("attacked", "attacked ones"),
            ("attacked_for_cost", "images made to be costly"),
        )
        if name in nfe
    )
    return {
        **rows,
        "norm": attack.norm,
        "epsilon": round(float(attack.epsilon), 7),
        "num_examples": len(clean),
        "says": f"Evaluations of the vector field per image: {said}.",
        "flags": flags,
    }
