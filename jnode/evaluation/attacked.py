"""What one attack did to a set of images."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Attacked:
    """The samples that an attack was run on, and what became of them.

    - `samples`: which; those that stood before.
    - `predictions`: the class given to each one's attacked image, -1 where its logits
        are not finite.
    - `broken`: which of all samples it broke.
    - `images`: the attacked images of these, the proof that they are broken.
    - `shown`: the attacked images of the first samples, broken or not.
    - `seconds`: how long it took, compilation included.
    """

    samples: Int[np.ndarray, " attacked"]
    predictions: Int[np.ndarray, " attacked"]
    broken: Int[np.ndarray, " broken"]
    images: Float[np.ndarray, "broken height width channels"]
    shown: Float[np.ndarray, "shown height width channels"]
    seconds: float | Float[np.ndarray, ""]

    def standing(self, before: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Which samples stand after it, of those that stood before."""
        after = before.copy()
        after[self.broken] = False
        return after
