"""Clean and attacked images of a run, kept for its report."""

import dataclasses
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jnode.train.files import write_atomic

DAMAGED = (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class Pictures:
    r"""Clean and attacked images, and how far their trajectories part.

    `distances` is $\|y(t) - z(t)\|$ of each pair at `times`; the envelopes bound its
    growth $\|y(t) - z(t)\| / \|y(0) - z(0)\|$ for the exact flow (not finite where
    nothing is known). `class_names` may stay empty: then classes go by their number.

    **Raises:** `ValueError` where the arrays do not fit together.
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
        }
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"{name} must have the shape {shape}, not {found}.")

    def class_name(self, index: int) -> str:
        """What a class is called: its name, else its number."""
        known = 0 <= index < len(self.class_names)
        return self.class_names[index] if known else str(int(index))

    @staticmethod
    def path(run_dir: str | os.PathLike) -> Path:
        """Where a run folder keeps its pictures."""
        return Path(run_dir) / "pictures.npz"

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
            # NumPy would leave a damaged file open that it opened itself.
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                arrays = dict(file)
            attack = str(arrays.pop("attack"))
            names = tuple(str(name) for name in arrays.pop("class_names", ()))
            return cls(attack=attack, class_names=names, **arrays)
        except DAMAGED as error:
            reason = str(error).splitlines()[0] if str(error) else "it is cut short"
            raise ValueError(f"{path} is damaged: {reason}") from error
