"""Clean and attacked images of a run, kept for its report."""

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jnode import certify
from jnode._files import as_path, write_atomic
from jnode.attacks import Outcome, Trial, describe
from jnode.models import ODEBlock, step_lengths

if TYPE_CHECKING:
    from jnode.models import ODEClassifier

MEASURED = 32
"""The number of test images whose steps are measured."""
DAMAGED = (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class Pictures:
    r"""Clean and attacked images, their trajectories, and the length of each step.

    `distances` is $\|y(t) - z(t)\|$ of each pair at `times`; the envelopes bound its
    growth $\|y(t) - z(t)\| / \|y(0) - z(0)\|$ for the exact flow (not finite where
    nothing is known). The time between two blocks occurs twice, before and after the
    layers there. `step_lengths` is the L2 length of each step, averaged over test
    images, and `step_blocks` the number of its block, from 0. If `class_names` is
    empty, classes are shown by their number.

    **Raises:** `ValueError` if the shapes of the arrays do not fit together.
    """

    attack: str
    clean: Float[np.ndarray, "pairs height width channels"]
    adversarial: Float[np.ndarray, "pairs height width channels"]
    labels: Int[np.ndarray, " pairs"]
    clean_predictions: Int[np.ndarray, " pairs"]
    adversarial_predictions: Int[np.ndarray, " pairs"]
    times: Float[np.ndarray, " times"]
    distances: Float[np.ndarray, "pairs times"]
    gronwall: Float[np.ndarray, " times"]
    log_norm: Float[np.ndarray, " times"]
    step_lengths: Float[np.ndarray, " steps"]
    step_blocks: Int[np.ndarray, " steps"]
    class_names: tuple[str, ...] = ()

    def __post_init__(self):
        n, k = len(self.clean), len(self.times)
        expected = {
            "adversarial": self.clean.shape,
            "labels": (n,),
            "clean_predictions": (n,),
            "adversarial_predictions": (n,),
            "distances": (n, k),
            "gronwall": (k,),
            "log_norm": (k,),
            "step_blocks": self.step_lengths.shape,
        }
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"{name} must have the shape {shape}, not {found}.")

    def class_name(self, index: int) -> str:
        """The name of a class, or its number if it has none."""
        known = 0 <= index < len(self.class_names)
        return self.class_names[index] if known else str(int(index))

    @staticmethod
    def path(run_dir: str | os.PathLike) -> Path:
        """Where a run folder keeps its pictures."""
        return as_path(run_dir) / "pictures.npz"

    def save(self, run_dir: str | os.PathLike) -> None:
        """Writes `pictures.npz` into a run folder, atomically."""
        arrays: dict[str, Any] = {k: np.asarray(v) for k, v in vars(self).items()}
        if not self.class_names:
            del arrays["class_names"]
        write_atomic(
            self.path(run_dir), lambda file: np.savez_compressed(file, **arrays)
        )

    @classmethod
    def load(cls, run_dir: str | os.PathLike) -> "Pictures":
        """Reads what `save` wrote; runs no code from the file.

        **Raises:** `FileNotFoundError` where there is none, `ValueError` for a damaged
        one.
        """
        path = cls.path(run_dir)
        try:
            # NumPy would leave a damaged file open if it opened it itself.
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                arrays = dict(file)
            attack = str(arrays.pop("attack"))
            names = tuple(str(name) for name in arrays.pop("class_names", ()))
            return cls(attack=attack, class_names=names, **arrays)
        except DAMAGED as error:
            reason = str(error).splitlines()[0] if str(error) else "it is cut short"
            raise ValueError(f"{path} is damaged: {reason}") from error


def pairs(
    model: "ODEClassifier", trials: Sequence[Trial], outcome: Outcome
) -> Pictures | None:
    """Pairs under the strongest Linf attack, with their trajectories.

    **Arguments:** the model; the trials, and their results.

    **Returns:** the pictures, or `None` where no such attack was run on an image.
    """

    def rank(i):
        # If later attacks left out samples on which earlier ones succeeded: the attack
        # that ran on most.
        return len(outcome.attacked[i].samples), int(trials[i].attack.steps), -i

    iterated = [i for i, trial in enumerate(trials) if trial.norm == "linf"]
    if not iterated:
        return None
    chosen = max(iterated, key=rank)
    found, images = outcome.attacked[chosen], outcome.images
    n = len(found.shown)
    if n == 0:
        return None
    shown = found.samples[:n]

    clean, attacked = (jnp.asarray(x) for x in (images[shown], found.shown))
    times = [t for t, _ in model.trajectories(clean[0])]
    lengths = step_lengths(model, jnp.asarray(images[:MEASURED]))
    return Pictures(
        attack=describe(trials[chosen]),
        clean=images[shown],
        adversarial=found.shown,
        labels=outcome.labels[shown],
        clean_predictions=outcome.predictions[shown],
        adversarial_predictions=found.predictions[:n],
        times=np.concatenate(times).astype(np.float32),
        distances=np.asarray(_distances(model, clean, attacked)),
        gronwall=_envelope(model, times, certify.gronwall),
        log_norm=_envelope(model, times, certify.log_norm_envelope),
        step_lengths=np.concatenate([np.asarray(steps) for steps in lengths]),
        step_blocks=np.repeat(np.arange(len(lengths)), [len(x) for x in lengths]),
    )


@eqx.filter_jit
def _distances(model, clean, attacked):
    def one(x, z):
        pairs = zip(model.trajectories(x), model.trajectories(z), strict=True)
        apart = [(a - b).reshape(len(a), -1) for (_, a), (_, b) in pairs]
        return jnp.concatenate([jnp.linalg.norm(d, axis=1) for d in apart])

    return jax.vmap(one)(clean, attacked)


def _envelope(model, times, envelope) -> Float[np.ndarray, " times"]:
    """The envelope over all blocks, including the layers between them."""
    found, grown, blocks = [], 1.0, 0
    for layer in model.layers:
        if isinstance(layer, ODEBlock):
            within = envelope(layer.field, jnp.asarray(times[blocks], jnp.float32))
            found.append(grown * np.asarray(within))
            grown, blocks = found[-1][-1], blocks + 1
        elif blocks:
            grown = grown * float(layer.lipschitz())
    return np.concatenate(found)
