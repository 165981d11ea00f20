"""All checks of an evaluation, and those of a protocol on one model."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float, Int

from jnode._batches import gathered
from jnode.attacks import PGD, AbstractAttack
from jnode.attacks.batches import check_budget, perturb, predict
from jnode.evaluation import checks
from jnode.evaluation.loop import Evaluation
from jnode.evaluation.protocols import Budget, Protocol
from jnode.evaluation.store import Attacked
from jnode.models.batched import batched

if TYPE_CHECKING:
    from jnode.models import ODEClassifier

Keep = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]


def check_model(
    model: "ODEClassifier",
    images: Float[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, " n"],
    protocol: Protocol,
    budget: Budget,
    *,
    seed: int = 0,
    keep: Keep = lambda name, make: make(),
) -> dict[str, dict[str, Any]]:
    """Runs each check on the first images.

    **Arguments:** the model; images and labels; the protocol, which says how many of
    them, and how long the longest PGD is; the budget of attacked images; the seed;
    `keep`, which is given each check's name and the function that runs it, and may
    remember what was found.

    **Returns:** per check its numbers, what it `says` in words, and its `flags`.
    """
    x = jnp.asarray(images[: protocol.checked])
    y = jnp.asarray(labels[: protocol.checked])
    whole = batched(model)
    norm, epsilon = budget
    attack, key = PGD(epsilon, norm=norm, steps=20), jr.key(seed)
    made: list[jax.Array] = []

    def attacked() -> jax.Array:
        if not made:
            made.append(perturb(attack, whole, x, y, key))
            check_budget(attack, x, made[0])
        return made[0]

    def gradient() -> dict[str, Any]:
        found = checks.gradient(whole, x, y, seed=seed)
        if model.solver.adaptive and not found["flags"]:
            found["held_steps"] = checks.held_steps(model, x, y)
            found["says"] += (
                f" From the gradient of the steps that the solve took it differs by "
                f"{found['held_steps']:.0e}."
            )
        return found

    every: dict[str, Callable[[], dict[str, Any]]] = {
        "adjoint": lambda: checks.adjoint(model.solver),
        "gradient": gradient,
        "batch_mates": lambda: checks.batch_mates(whole, x, seed=seed),
        "tolerance": lambda: checks.tolerance(model, x, attacked()),
        "work": lambda: checks.work(model, x, attacked(), attack, key=key),
    }
    if protocol.longer is not None:
        steps = (20, protocol.longer)
        every["longer"] = lambda: checks.longer(
            whole, x, y, epsilon=epsilon, norm=norm, key=key, steps=steps
        )
    return {name: keep(name, make) for name, make in every.items()}


def check_evaluation(
    model: "ODEClassifier",
    images: Float[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, " n"],
    attacks: Sequence[AbstractAttack],
    result: Evaluation,
    batch_size: int,
) -> dict[str, dict[str, Any]]:
    """The checks of what an evaluation found, a protocol's or not.

    **Arguments:** the model; clean images and labels; the attacks, and what they found;
    images at a time.
    """
    stored = recheck(
        batched(model),
        images,
        labels,
        attacks,
        result.attacked,
        batch_size=batch_size,
    )
    return {
        **result.summary["checks"],
        "stored_images": stored,
        "adjoint": checks.adjoint(model.solver),
    }


def flags_of(result: Evaluation, checks: dict[str, dict[str, Any]]) -> list[str]:
    """The flags of an evaluation and of all its checks."""
    # Those of the outputs are among the evaluation's own.
    others = (check["flags"] for name, check in checks.items() if name != "outputs")
    return [*result.summary["flags"], *(flag for flags in others for flag in flags)]


def recheck(
    model: Callable,
    images: Float[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, " n"],
    attacks: Sequence[AbstractAttack],
    attacked: Sequence[Attacked],
    *,
    batch_size: int = 250,
) -> dict[str, Any]:
    """Classifies every stored image anew, and checks [0, 1] and its budget anew.

    **Arguments:** a map from a batch of images to logits; the clean images and labels;
    the attacks and what each did; images at a time.

    **Returns:** how many images are stored and how many of them are misclassified, the
    share that stands by them after each attack; words, and a flag where a stored image
    proves nothing.

    **Raises:** `RuntimeError` for an image outside [0, 1] or its budget.
    """
    length = min(batch_size, len(labels))
    right = np.zeros(len(labels), bool)
    for chosen, x, _, mask in gathered(images, labels, np.arange(len(labels)), length):
        right[chosen] = np.asarray(predict(model, x))[mask] == labels[chosen]
    stored, proven, left = 0, 0, []
    for attack, found in zip(attacks, attacked, strict=True):
        fallen = np.zeros(len(labels), bool)
        all_ = np.arange(len(found.broken))
        for here, x, y, mask in gathered(
            found.images, labels[found.broken], all_, length
        ):
            clean = jnp.asarray(images[np.resize(found.broken[here], length)])
            check_budget(attack, clean, x)
            wrong = (np.asarray(predict(model, x)) != np.asarray(y))[mask]
            fallen[found.broken[here[wrong]]] = True
        stored, proven = stored + len(all_), proven + int(fallen.sum())
        stands = np.zeros(len(labels), bool)
        stands[found.samples] = True
        left.append(int((right & stands & ~fallen).sum()))
    flags = []
    if proven < stored:
        flags.append(
            f"stored images: {stored - proven} of {stored} attacked images that were "
            "misclassified are not when asked again."
        )
    return {
        "stored": stored,
        "misclassified": proven,
        "standing": left,
        "says": f"{stored} attacked images are stored; asked again, {proven} are "
        "misclassified, and all lie in [0, 1] and within their budgets.",
        "flags": flags,
    }
