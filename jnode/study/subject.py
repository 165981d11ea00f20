"""A classifier with its test images, and what is to be measured of it."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jnode._batches import check_images, check_labels
from jnode.evaluation.store import fingerprint
from jnode.models import ODEClassifier
from jnode.study.cells import Measures

Images = (
    Float[np.ndarray, "n height width channels"]
    | Float[Array, "n height width channels"]
)
Labels = Int[np.ndarray, " labels"] | Int[Array, " labels"]


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A classifier that is there already, as a cell of a study: one row of its results.

    - `name`: of the row, and of its folder.
    - `model`: an `ODEClassifier`, or a function from one image, [height, width,
        channels] with pixels in [0, 1], to its logits or to a pair of its logits and
        the number of evaluations of its field (such as `solution.stats["nfe"]`).
    - `images`, `labels`: the test images [n, height, width, channels] with pixels in
        [0, 1], and their classes [n].
    - `measures`: what to measure.
    - `solver`, `dataset`: how these are called in tables.
    - `surrogates`: classifiers like `model`, by name, from which PGD is transferred.
    - `lipschitz`: an upper bound on the L2 Lipschitz constant of a function from image
        to logits, for which you vouch. An `ODEClassifier` has its own certificate.

    **Raises:** `ValueError` or `TypeError` for a name that is no file's, or for images
    and labels that no attack would take.
    """

    name: str
    model: Callable
    images: Images
    labels: Labels
    measures: Measures
    solver: str = ""
    dataset: str = "own images"
    surrogates: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    lipschitz: float | None = None

    def __post_init__(self):
        if not re.fullmatch(r"\w[\w.\-]*", self.name):
            raise ValueError(
                "name must consist of letters, digits, dots, dashes and underscores, "
                f"not {self.name!r}."
            )
        for name in ("images", "labels"):
            object.__setattr__(self, name, np.asarray(getattr(self, name)))
        check_images(self.images)
        logits = jax.eval_shape(self.classifier, jnp.asarray(self.images[0]))
        if logits.ndim != 1:
            raise ValueError(
                f"model of {self.name} must map one image to a vector of logits, not "
                f"to the shape {logits.shape}."
            )
        check_labels(self.labels, len(logits))
        if len(self.labels) != len(self.images):
            raise ValueError(
                f"labels must be as many as the {len(self.images)} images, not "
                f"{len(self.labels)}."
            )

    @property
    def classifier(self) -> Callable:
        """The model as a function from one image to its logits, for attacks."""
        if isinstance(self.model, ODEClassifier):
            return self.model.bake()
        return lambda image: _pair(self.model(image))[0]

    def evaluations(
        self, image: Float[Array, "height width channels"]
    ) -> Int[Array, ""] | None:
        """What a function says of its evaluations of the field, or `None`."""
        count = _pair(self.model(image))[1]
        return None if count is None else jnp.asarray(count)

    def settings(self) -> dict[str, Any]:
        """What a row depends on, as JSON returns it.

        A function cannot be read, so its answers on the first images stand for it.
        """
        first = jnp.asarray(self.images[:4])
        answers = np.asarray(eqx.filter_jit(jax.vmap(self.classifier))(first))
        return {
            "measures": repr(self.measures),
            "solver": self.solver,
            "surrogates": sorted(self.surrogates),
            "lipschitz": self.lipschitz,
            "data": fingerprint(self.images, self.labels),
            "answers": [[f"{z:.3g}" for z in row] for row in answers.tolist()],
        }


def _pair(result: Any) -> tuple[Any, Any]:
    """Logits, and the number of evaluations if there is one."""
    return result if isinstance(result, tuple) else (result, None)
