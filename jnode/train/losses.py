"""What training minimises."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jnode.models import ODEClassifier

LOSSES = ("natural", "margin", "noise", "adversarial")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What training minimises.

    - `name`: "natural" (cross-entropy), "margin" (Lipschitz-margin training), "noise"
        (on images with Gaussian noise) or "adversarial" (on PGD images).
    - `temperature`: factor of the logits in the cross-entropy, positive; above 1 for
        unit-norm heads.
    - `rho`: margin loss: the L2 radius, in pixel units, that training asks for.
    - `sigma`: noise: its standard deviation, in pixel units.
    - `norm`, `epsilon`, `steps`: adversarial: the PGD attack, in pixel units.
    """

    name: str = "natural"
    temperature: float = 1.0
    rho: float = 0.5
    sigma: float = 0.2
    norm: str = "linf"
    epsilon: float = 0.1
    steps: int = 10

    def __post_init__(self):
        if self.name not in LOSSES:
            raise ValueError(
                f"loss name must be one of {', '.join(LOSSES)}, not {self.name!r}."
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, not {self.temperature!r}.")
        for name in ("rho", "sigma", "epsilon"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"{name} must be at least 0, not {getattr(self, name)!r}."
                )


Loss = Callable[
    [ODEClassifier, Float[Array, "b h w c"], Int[Array, " b"], PRNGKeyArray],
    tuple[Float[Array, ""], dict],
]


def make_loss(config: LossConfig) -> Loss:
    """The loss of a batch: `loss(model, images, labels, key) -> value, aux`.

    `aux` holds the batch's accuracy (on the images that the loss sees) and mean `nfe`.
    """

    def loss(model, images, labels, key):
        model = model.bake()
        if config.name == "noise":
            images = images + config.sigma * jr.normal(key, images.shape)
            images = jnp.clip(images, 0, 1)
        elif config.name == "adversarial":
            images = _adversarial(model, images, labels, key, config)
        solutions = jax.vmap(model.solution)(images)
        features = solutions.y.reshape(len(images), -1)
        logits = jax.vmap(model.head)(features)
        accuracy = jnp.mean((jnp.argmax(logits, axis=1) == labels).astype(jnp.float32))
        if config.name == "margin":
            # Tsuzuku et al., NeurIPS 2018: the true class must win by what an image
            # within rho could take from it: sqrt(2) L rho for orthonormal rows.
            onehot = jax.nn.one_hot(labels, logits.shape[1])
            logits = logits - 2**0.5 * model.lipschitz() * config.rho * onehot
        entropy = optax.softmax_cross_entropy_with_integer_labels(
            config.temperature * logits, labels
        )
        nfe = jnp.mean(solutions.stats["nfe"].astype(jnp.float32))
        return jnp.mean(entropy), {"accuracy": accuracy, "nfe": nfe}

    return loss


def _adversarial(model, images, labels, key, config):
    from jnode import attacks

    attack = attacks.make(
        "pgd",
        norm=config.norm,
        epsilon=config.epsilon,
        steps=config.steps,
        restarts=1,
    )
    frozen = jax.lax.stop_gradient
    model = jax.tree.map(lambda x: frozen(x) if hasattr(x, "dtype") else x, model)
    return frozen(attack(jax.vmap(model), images, labels, key=key))
