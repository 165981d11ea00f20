"""The cells of a study: a model, trained or given, and what is measured of it."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jnode._batches import check_images, check_labels
from jnode._checks import check_choice
from jnode.attacks.losses import cross_entropy, logits_of
from jnode.evaluation.store import fingerprint
from jnode.models import ModelConfig, ODEClassifier
from jnode.models.batched import batched
from jnode.solvers import Solver
from jnode.train import DataConfig, LossConfig, TrainConfig

PARTS = ("models", "lipschitz", "solvers", "steps")
"""The parts of the declared studies: models, constants, solvers, numbers of steps."""

Budget = tuple[str, float]
"""A norm and an epsilon."""


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is measured of a trained model.

    - `alone`: attacks as `jnode.attacks.parse` reads them, each on all of the first
        `num_alone` test images.
    - `via`: another solver for the same weights, on which PGD is made too and
        transferred, at the budgets of `alone`.
    - `budgets`: norms and epsilons of AutoAttack, whose attacks run in turn on those of
        the first `num_ensemble` test images that are still robust.
    - `radii`: the L2 radii at which certified robust accuracy is reported, on all test
        images.
    - `linf`: Linf radii at which models with fixed steps are certified by intervals, on
        all test images. Models that were not trained for that get 0.
    - `tightness`: whether to search for a lower bound on the Lipschitz constant (slow).
    - `adaptive`: an adaptive solver whose evaluations are counted for the same weights.
    """

    alone: tuple[str, ...] = ()
    num_alone: int = 1000
    via: Solver | None = None
    budgets: tuple[Budget, ...] = ()
    num_ensemble: int = 200
    radii: tuple[float, ...] = ()
    linf: tuple[float, ...] = ()
    tightness: bool = False
    adaptive: Solver | None = None


def check_enclosable(measures: Measures, solver: Solver) -> None:
    """**Raises:** `ValueError` if Linf certificates are wanted of an adaptive solver,
    or at a negative radius."""
    if measures.linf and solver.adaptive:
        raise ValueError(
            f"measures.linf needs fixed steps, and {solver} chooses them: leave it out."
        )
    for radius in measures.linf:
        if not radius >= 0:
            raise ValueError(f"measures.linf must be at least 0, not {radius!r}.")


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
        wanted = self.measures
        only = (wanted.via, wanted.adaptive, wanted.tightness or None, wanted.linf)
        if not isinstance(self.model, ODEClassifier):
            if any(only):
                raise ValueError(
                    "measures must leave out via, adaptive, tightness and linf for a "
                    "function: they belong to an ODEClassifier, or to a study.Cell."
                )
        else:
            check_enclosable(wanted, self.model.solver)
        check_images(self.images)
        logits = jax.eval_shape(self.classifier, self.images[0])
        if logits.ndim != 1:
            raise ValueError(
                f"model of {self.name} must map one image to a vector of logits, not "
                f"to the shape {logits.shape}."
            )
        check_labels(self.labels, len(logits), self.images)

    @functools.cached_property  # one function, so that it is compiled once
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

        A function cannot be read, so its answers on the first images stand for it, and
        the lengths of its loss's gradients there.
        """
        answers = self._behaviour(self.classifier)
        surrogates = {x: self._behaviour(f) for x, f in self.surrogates.items()}
        return {
            "measures": repr(self.measures),
            "solver": self.solver,
            "surrogates": dict(sorted(surrogates.items())),
            "lipschitz": self.lipschitz,
            "data": fingerprint(np.asarray(self.images), np.asarray(self.labels)),
            "answers": answers,
        }

    def _behaviour(self, model: Callable) -> list[list[str]]:
        """For each of the first images the logits, and how steep the loss is."""
        first, labels = jnp.asarray(self.images[:4]), jnp.asarray(self.labels[:4])
        answers = np.asarray(logits_of(batched(model), first))
        try:
            steep = np.asarray(_steepness(model, first, labels))
        except Exception:  # a function that cannot be differentiated, as it may be
            steep = np.full(len(first), np.nan)
        rows = zip(answers.tolist(), steep.tolist(), strict=True)
        return [[*(f"{z:.3g}" for z in row), f"{g:.2g}"] for row, g in rows]


@eqx.filter_jit
def _steepness(model: Callable, images, labels) -> Float[Array, " n"]:
    """The length of each gradient of the cross-entropy."""

    def loss(x):
        return jnp.sum(cross_entropy(logits_of(batched(model), x), labels))

    return jnp.linalg.norm(jax.grad(loss)(images).reshape(len(images), -1), axis=1)


def _pair(result: Any) -> tuple[Any, Any]:
    """Logits, and the number of evaluations if there is one."""
    return result if isinstance(result, tuple) else (result, None)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a study, which becomes one row of its results.

    - `part`: the table and figure to which it belongs, one of `PARTS`.
    - `model`, `training`: the names of the model and its training in tables.
    - `train`: the whole training run, data and seed included.
    - `solver`: the solver of the evaluation, if it differs from that of training.
    - `measures`: what to measure.
    """

    part: str
    model: str
    training: str
    train: TrainConfig
    measures: Measures
    solver: Solver | None = None

    def __post_init__(self):
        check_enclosable(self.measures, self.evaluated)

    @property
    def trained(self) -> str:
        """The name of the trained run; cells with the same name share it."""
        parts = (self.train.data.name, self.model, self.training)
        return "-".join((*parts, f"seed{self.train.seed}"))

    @property
    def name(self) -> str:
        """The name of the cell's run folder."""
        if self.solver is None:
            return self.trained
        solver = self.solver
        detail = solver.steps if solver.steps else f"{solver.tolerances[0]:g}"
        return f"{self.trained}--{solver.name}-{detail}"

    @property
    def evaluated(self) -> Solver:
        """The solver of the evaluation."""
        return self.train.solver if self.solver is None else self.solver


_RK4 = Solver("rk4", steps=2)
# The networks of the literature: a free encoder of three convolutions, group norm.
_USUAL = ModelConfig("free", encoder="conv", features=16, group_norm=True)
# What is compared with its constraint and without: an isometric encoder, 32 channels
# on a grid of 7 x 7, and two maps around MaxMin.
_ORTHO = ModelConfig("ortho", position=True, activation="maxmin")

MODELS: dict[str, tuple[ModelConfig, Solver]] = {
    # A residual block is one Euler step.
    "cnn": (_USUAL, Solver("euler", steps=1)),
    "cnn_wide": (dataclasses.replace(_USUAL, features=32), Solver("euler", steps=1)),
    "resnet": (
        dataclasses.replace(_USUAL, segments=(4,)),
        Solver("euler", steps=4),
    ),
    "odenet": (dataclasses.replace(_USUAL, time=True), _RK4),
    "tisode": (_USUAL, _RK4),
    "free": (dataclasses.replace(_ORTHO, field="free", padding="circular"), _RK4),
    "ortho": (_ORTHO, _RK4),
    # Steps of hL = 2, each with weights of its own: after one step the state is at
    # equilibrium for its weights.
    "contractive": (
        ModelConfig(
            "gradient_flow",
            features=64,
            hidden=16,
            kernel_size=5,
            segments=(4,),
            position=True,
            lipschitz=8.0,
        ),
        Solver("euler", steps=4),
    ),
    "skew": (ModelConfig("skew", lipschitz=2.0, damping=0.5, position=True), _RK4),
}
"""The models of the studies, as configurations and solvers, for grey images; for colour
they have twice the channels."""
LOSSES = {"tisode": "steady_state"}
"""The trainings, by name: losses other than plain cross-entropy."""

TRAININGS: dict[str, dict] = {
    "natural": {},
    # Half clean images, half noisy copies (after Yan et al., ICLR 2020).
    "noise": {"inputs": "noise", "sigma": 100 / 255, "share": 0.5},
    "adversarial": {"inputs": "adversarial", "steps": 5},
    "trades": {"name": "trades", "weight": 6.0, "steps": 5},
    "margin": {"name": "margin"},
}


def configure(
    model: str,
    training: str,
    data: DataConfig,
    *,
    channels: int,
    epochs: int,
    seed: int = 0,
    epsilon: float = 0.2,
    lipschitz: float | None = None,
    rho: float = 0.5,
    logit_scale: float = 1.0,
    solver: Solver | None = None,
) -> TrainConfig:
    """The training run of a model of `MODELS` under a training of `TRAININGS`.

    **Arguments:** their names, the data, the channels of their images, the epochs and
    the seed; the Linf budget of adversarial training and TRADES; another Lipschitz
    constant, or solver, than the model's; the radius of margin training; and the factor
    of the logits in the cross-entropy.

    **Raises:** `ValueError` for an unknown name.
    """
    check_choice("model", model, MODELS)
    check_choice("training", training, TRAININGS)
    (described, default), factor = MODELS[model], 1 if channels == 1 else 2
    options: dict = {"features": factor * described.features}
    if described.hidden is not None:
        options["hidden"] = factor * described.hidden
    if lipschitz is not None:
        options["lipschitz"] = lipschitz
    loss = {"name": LOSSES.get(model, "natural"), **TRAININGS[training]}
    loss |= {"rho": rho, "logit_scale": logit_scale}
    return TrainConfig(
        data=data,
        model=dataclasses.replace(described, **options),
        solver=solver or default,
        loss=LossConfig(epsilon=epsilon, **loss),
        epochs=epochs,
        learning_rate=5e-3,
        seed=seed,
    )
