"""The training step, on one device or many, and the running metrics of an epoch."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from jnode import data
from jnode.constraints import AOL, SLL, Constrained, NewtonSchulz, SpectralRescale
from jnode.linear import AbstractLinear
from jnode.linear.products import training_precision
from jnode.models import Head, ODEClassifier, build
from jnode.sharding import averaged
from jnode.train.config import TrainConfig
from jnode.train.ibp import narrowed
from jnode.train.losses import PENALISED, Loss, LossConfig, make_loss
from jnode.train.run_dir import NonFiniteLossError, SolverFailedError


class TrainState(eqx.Module):
    """The model, the optimiser's state and the number of steps taken.

    The order of the images and all random numbers are determined by the seed and
    `step`, so a resumed run needs nothing else.
    """

    model: ODEClassifier
    optimizer_state: optax.OptState
    step: Int[Array, ""]


def make_schedule(config: TrainConfig, total_steps: int) -> optax.Schedule:
    """The learning rate by update: a cosine, after a linear warm-up over the first
    tenth."""
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(total_steps // 10, 1), max(total_steps, 2)
    )


def learning_rate(config: TrainConfig, total_steps: int, step: int) -> float:
    """The learning rate of a step, counted from 1, if no step was skipped before."""
    return np.asarray(make_schedule(config, total_steps)(step - 1)).item()


def make_optimizer(
    config: TrainConfig, total_steps: int
) -> optax.GradientTransformation:
    """AdamW with `make_schedule`, and weight decay on the arrays selected by
    `decays`."""
    schedule = make_schedule(config, total_steps)
    return optax.adamw(schedule, weight_decay=config.weight_decay, mask=decays)


# Constraints that divide a weight by its own size, so that its scale has no effect.
_NORMALISING = (SpectralRescale, AOL, SLL, NewtonSchulz)
_WEIGHTS = ("weight", "kernel", "matrix")


def decays(model: PyTree) -> PyTree[bool]:
    """The arrays of a model on which weight decay acts: the weights of its linear maps.

    That is, an array called `weight`, `kernel` or `matrix` that belongs to a linear
    map (constrained or plain), a layer `eqx.nn.Linear` or `eqx.nn.Conv`, or a head;
    unless it is divided by its own size (a head whose rows have norm 1, the constraints
    rescaled, aol, sll and newton_schulz), where decay would only raise the learning
    rate. All other arrays are left alone: biases, scales of group norm, learned
    Lipschitz constants, `log_q`, angles, time coefficients, and whatever a new kind of
    module brings. Ranks do not count, since a `PiecewiseField` stacks its segments.
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
    """The dtype of a model: the most precise one of its floating-point arrays."""
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
    if config.loss.name == "ibp":
        model = narrowed(model)
    optimizer = make_optimizer(config, total_steps)
    params = eqx.filter(model, eqx.is_inexact_array)
    return TrainState(model, optimizer.init(params), jnp.asarray(0, jnp.int32))


def make_step(
    config: TrainConfig, total_steps: int, mesh: Mesh | None = None
) -> Callable:
    """The jitted training step: `step((images, labels), state) -> state, metrics`.

    A step whose loss or gradient is not finite, or whose loss is above
    `config.max_loss`, changes only the step number, and sets `metrics["bad"]`.

    On a mesh each device differentiates the loss of its part of the batch, in
    `config.accumulate` parts, and one all-reduce averages gradients and metrics. All
    random keys belong to the images, so the numbers do not depend on the number of
    devices.

    **Arguments:** the configuration; the number of steps of the whole run; the mesh
    over which batches are sharded, if any.
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
        progress = jnp.full(len(images), state.step / max(total_steps, 1))
        batch = (images, labels, keys, progress.astype(images.dtype))
        with training_precision(config.precision):
            (value, aux), grads = gradients(state.model, *batch)
        params = eqx.filter(state.model, eqx.is_inexact_array)
        updates, opt = optimizer.update(grads, state.optimizer_state, params)
        model = eqx.apply_updates(state.model, updates)
        # The sum of squares may overflow although no gradient does; that counts too.
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


def make_steps(
    config: TrainConfig, total_steps: int, mesh: Mesh | None = None
) -> Callable:
    """Many training steps as one program.

    `steps((batches, totals, count), state) -> state, totals` takes `count` steps of
    `make_step`, on the batches that `batches` (`jnode.data.device`) returns for each
    step number, and adds their metrics to the totals. The count is data, so one program
    serves any count, and the results do not depend on how many steps are taken at a
    time.

    **Arguments:** as for `make_step`.
    """
    step = make_step(config, total_steps, mesh)

    @eqx.filter_jit(donate="all-except-first")
    def steps(given, state: TrainState):
        batches, totals, count = given
        arrays, static = eqx.partition(state, eqx.is_array)

        def body(_, carried):
            arrays, totals = carried
            state, metrics = step(batches(arrays.step), eqx.combine(arrays, static))
            totals = add_step(totals, metrics, state.step)
            return eqx.filter(state, eqx.is_array), totals

        arrays, totals = jax.lax.fori_loop(0, count, body, (arrays, totals))
        return eqx.combine(arrays, static), totals

    return steps


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


class RunningMetrics(eqx.Module):
    """Sums over the steps of one epoch, kept on the device.

    A resumed epoch continues from the sums in the checkpoint. The host reads them only
    now and then, and only sums that are already computed, so no step waits for it.

    - `sums`: the sum of each metric over the steps that were taken.
    - `steps`: how many were taken.
    - `skipped`: how many were skipped, because their loss or gradient was bad.
    - `bad_step`, `bad_loss`: the first skipped step, counted from 1, and its loss; 0 if
        there was none.
    """

    sums: dict[str, Float[Array, ""]]
    steps: Int[Array, ""]
    skipped: Int[Array, ""]
    bad_step: Int[Array, ""]
    bad_loss: Float[Array, ""]


def empty_metrics(loss: LossConfig) -> RunningMetrics:
    """The totals at an epoch's start, with the names that this loss has."""
    rest = ("penalty",) if loss.name in PENALISED else ()
    rest = ("certified",) if loss.name == "ibp" else rest
    names = ("loss", "accuracy", "nfe", "failed", *rest)
    number, count = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
    return RunningMetrics(dict.fromkeys(names, number), count, count, count, number)


@jax.jit
def add_step(
    totals: RunningMetrics, metrics: dict[str, Array], step: Int[Array, ""]
) -> RunningMetrics:
    """The totals after one more step, from its metrics and its number, counted from
    1."""
    metrics = dict(metrics)
    bad = metrics.pop("bad")
    # Under jax_enable_x64 some metrics are float64; the sums keep their own dtype.
    metrics = {k: v.astype(totals.sums[k].dtype) for k, v in metrics.items()}
    first = bad & (totals.bad_step == 0)
    return RunningMetrics(
        {k: v + jnp.where(bad, 0, metrics[k]) for k, v in totals.sums.items()},
        totals.steps + jnp.where(bad, 0, 1),
        totals.skipped + jnp.where(bad, 1, 0),
        jnp.where(first, step, totals.bad_step),
        jnp.where(first, metrics["loss"], totals.bad_loss),
    )


def epoch_means(totals: RunningMetrics, batch_size: int) -> dict[str, float | int]:
    """The epoch's row: the mean metrics, and the skipped steps and failed solves.

    `failed_solves` is the number of images whose solve ended at `max_steps`.
    """
    steps = int(totals.steps)
    row: dict = {k: float(v) / max(steps, 1) for k, v in totals.sums.items()}
    row["failed_solves"] = round(row.pop("failed") * steps * batch_size)
    row["skipped_steps"] = int(totals.skipped)
    return row


def check_metrics(
    totals: RunningMetrics, config: TrainConfig, total_steps: int, last: str
) -> None:
    """Checks the totals on the host.

    **Arguments:** the totals; the configuration; the number of steps of the whole run;
    the last good checkpoint, for the message.

    **Raises:** `NonFiniteLossError` for a bad step, unless bad steps are skipped and
    others remain; `SolverFailedError` for more failed solves than allowed.
    """
    step, steps, skipped = (
        int(x) for x in (totals.bad_step, totals.steps, totals.skipped)
    )
    hopeless = steps == 0 and skipped >= 10
    if step and (hopeless or not config.skip_nonfinite):
        rate = learning_rate(config, total_steps, step)
        skipping = "" if config.skip_nonfinite else ", or set skip_nonfinite"
        raise NonFiniteLossError(
            f"At step {step} the loss was {float(totals.bad_loss):g}, or its gradient "
            f"not finite, at a learning rate of {rate:.3g}: lower learning_rate"
            f"{skipping}. The weights of that step were not taken; the last good "
            f"checkpoint is {last}."
        )
    share = float(totals.sums["failed"]) / max(steps, 1)
    if share > config.max_failed:
        raise SolverFailedError(
            f"{share:.1%} of this epoch's solves ended at max_steps="
            f"{config.solver.max_steps}, more than max_failed={config.max_failed:g}: "
            "allow more steps, loosen rtol and atol, or take a smaller Lipschitz "
            f"constant. The last good checkpoint is {last}."
        )
