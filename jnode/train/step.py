"""The training step, on one device or many."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jnode import data
from jnode.sharding import averaged
from jnode.train.config import TrainConfig
from jnode.train.losses import Loss, make_loss
from jnode.train.state import TrainState, dtype_of, make_optimizer


def make_step(
    config: TrainConfig, total_steps: int, mesh: Mesh | None = None
) -> Callable:
    """The jitted training step: `step((images, labels), state) -> state, metrics`.

    A step whose loss or gradient is not finite, or whose loss is above
    `config.max_loss`, changes nothing but the step's number; `metrics["bad"]` tells.

    On a mesh each device differentiates the loss of its share of the batch, in
    `config.accumulate` parts, and one all-reduce averages gradients and metrics. All
    random numbers belong to the images, so they are the same on any number of devices.

    **Arguments:** the configuration; the steps of the whole run; over what devices the
    batches are spread, if over any.
    """
    optimizer = make_optimizer(config, total_steps)
    gradients = averaged(_gradients(make_loss(config.loss), config.accumulate), mesh)
    root = jax.random.key(config.seed + 1)

    @eqx.filter_jit(donate="all-except-first")
    def step(batch, state: TrainState):
        images, labels = batch
        augment_key, loss_key = jax.random.split(jax.random.fold_in(root, state.step))
        images = data.to_float(images, dtype_of(state.model))
        if config.data.flip or config.data.pad:
            images = data.augment(
                images, augment_key, flip=config.data.flip, pad=config.data.pad
            )
        keys = jax.random.split(loss_key, len(images))
        (value, aux), grads = gradients(state.model, images, labels, keys)
        params = eqx.filter(state.model, eqx.is_inexact_array)
        updates, opt = optimizer.update(grads, state.optimizer_state, params)
        model = eqx.apply_updates(state.model, updates)
        # The sum of squares may overflow where no gradient does: an explosion too.
        size = sum(jnp.sum(g**2) for g in jax.tree.leaves(grads))
        good = jnp.isfinite(size) & (value <= config.max_loss)
        model, opt = jax.tree.map(
            lambda new, old: jnp.where(good, new, old) if eqx.is_array(new) else new,
            (model, opt),
            (state.model, state.optimizer_state),
        )
        metrics = {"loss": value, **aux, "bad": ~good}
        return TrainState(model, opt, state.step + 1), metrics

    return step


def _gradients(loss: Loss, accumulate: int) -> Callable:
    """`(value, aux), gradients` of a batch, as means over `accumulate` parts of it."""
    one = eqx.filter_value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        return one

    def gradients(model, *batch):
        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = eqx.filter_eval_shape(one, model, *first)
        total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def body(total, part):
            return jax.tree.map(jnp.add, total, one(model, *part)), None

        total, _ = jax.lax.scan(body, total, parts)
        return jax.tree.map(lambda x: x / accumulate, total)

    return gradients
