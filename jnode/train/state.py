"""Everything that a training run is in the middle of."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from jnode.models import ODEClassifier, build
from jnode.train.config import TrainConfig


class TrainState(eqx.Module):
    """The model, the optimiser's state and the number of steps taken.

    The order of the images and all random numbers follow from the seed and `step`, so
    this is all that a resumed run needs.
    """

    model: ODEClassifier
    optimizer_state: optax.OptState
    step: Int[Array, ""]


def make_schedule(config: TrainConfig, total_steps: int) -> optax.Schedule:
    """The learning rate after so many updates: a cosine whose first tenth warms up."""
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(total_steps // 10, 1), max(total_steps, 2)
    )


def learning_rate(config: TrainConfig, total_steps: int, step: int) -> float:
    """The rate of a step, counted from 1, none before it having been skipped."""
    return np.asarray(make_schedule(config, total_steps)(step - 1)).item()


def make_optimizer(
    config: TrainConfig, total_steps: int
) -> optax.GradientTransformation:
    """AdamW on `make_schedule`."""
    schedule = make_schedule(config, total_steps)
    return optax.adamw(schedule, weight_decay=config.weight_decay)


def init_state(
    config: TrainConfig,
    *,
    image_shape: tuple[int, int, int],
    classes: int,
    total_steps: int,
) -> TrainState:
    """The state before the first step."""
    model = build(
        config.model,
        config.solver,
        image_shape=image_shape,
        classes=classes,
        key=jax.random.key(config.seed),
    )
    optimizer = make_optimizer(config, total_steps)
    params = eqx.filter(model, eqx.is_inexact_array)
    return TrainState(model, optimizer.init(params), jnp.asarray(0, jnp.int32))
