"""Whether predictions depend on how exactly the ODE is solved."""

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jnode.evaluation.transfers import rescaled

if TYPE_CHECKING:
    from jnode.models import ODEClassifier

SENSITIVE = 0.01
"""The share of changed predictions above which an adaptive solver is flagged."""


@eqx.filter_jit
def classes(model, images):
    """The class given to each image of a batch by a model of single images."""
    return jnp.argmax(jax.vmap(model)(images), axis=1)


def tolerance(
    model: "ODEClassifier", images: ArrayLike, attacked: ArrayLike
) -> dict[str, Any]:
    """The share of predictions that change when the solve is finer or coarser.

    An adaptive solver's tolerances are divided or multiplied by ten, fixed steps
    halved or doubled. A fixed-step model is defined by its steps, so there the shares
    tell how much of it is discretisation, and are no flag; an adaptive solver claims
    to compute the flow, and is flagged where a finer solve disagrees.

    **Arguments:** the model; clean images and attacked ones, [n, height, width,
    channels].

    **Returns:** a row for each other solver; words and flags.
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
            # One step has no coarser, and pieces of a field ask for steps of their own.
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
        # One image at a boundary is nobody's fault.
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
        "says": f"{'; '.join(said) or 'No other steps are possible'}.",
        "flags": flags,
    }
