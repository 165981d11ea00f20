"""Everything that a training run is in the middle of."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from jnode.constraints import AOL, SLL, Constrained, NewtonSchulz, SpectralRescale
from jnode.linear import AbstractLinear
from jnode.models import Head, ODEClassifier, build
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
    """AdamW on `make_schedule`, whose decay acts on the weights that `decays` names."""
    schedule = make_schedule(config, total_steps)
    return optax.adamw(schedule, weight_decay=config.weight_decay, mask=decays)


# Constraints that divide a weight by its own size, so that it has no effect.
_NORMALISING = (SpectralRescale, AOL, SLL, NewtonSchulz)
_WEIGHTS = ("weight", "kernel", "matrix")


def decays(model: PyTree) -> PyTree[bool]:
    """Which of a model's arrays weight decay acts on: the weights of its linear maps.

    That is, an array called `weight`, `kernel` or `matrix` that belongs to a linear
    map (constrained or plain), a layer `eqx.nn.Linear` or `eqx.nn.Conv`, or a head;
    unless it is divided by its own size (a head whose rows have norm 1, the constraints
    rescaled, aol, sll and newton_schulz), where decay would only raise the learning
    rate. All other arrays are left alone: biases, scales of group norm, learned
    Lipschitz constants, `log_q`, angles, time coefficients, and whatever a new kind of
    module brings. Ranks do not count, since a `PiecewiseField` stacks its pieces.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _decays(*_owner(model, path)), model
    )


def _owner(model: PyTree, path: tuple) -> tuple[object, str]:
    """The innermost module on a path to a leaf, and the name of its field there."""
    owner, name, node = None, "", model
    for key in path:
        if isinstance(key, jax.tree_util.GetAttrKey):
            owner, name = node, key.name
            node = getattr(node, key.name)
        elif isinstance(key, jax.tree_util.SequenceKey):
            node = node[key.idx]
        else:
            node = node[key.key]
    return owner, name


def _decays(owner: object, name: str) -> bool:
    if name not in _WEIGHTS:
        return False
    if isinstance(owner, Head):
        return not owner.unit_norm
    if isinstance(owner, Constrained):
        return not isinstance(owner.constraint, _NORMALISING)
    return isinstance(owner, (AbstractLinear, eqx.nn.Linear, eqx.nn.Conv))


def dtype_of(model: PyTree) -> jnp.dtype:
    """The type of a model's numbers: the longest of its floating arrays'."""
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return jnp.result_type(*leaves)


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
