"""What an epoch's steps add up to, kept on the device.

A resumed epoch goes on adding where the checkpoint left off, and the host looks only
now and then, at sums that are long finished: no step waits for it.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jnode.train.config import TrainConfig
from jnode.train.errors import NonFiniteLossError, SolverFailedError
from jnode.train.losses import LossConfig
from jnode.train.state import learning_rate


class Tally(eqx.Module):
    """Sums over the steps of one epoch.

    - `sums`: of each metric, over the steps that were taken.
    - `steps`: how many were taken.
    - `skipped`: how many were not, their loss or gradient being bad.
    - `bad_step`, `bad_loss`: the first of those, counted from 1, and its loss; 0
        where there was none.
    """

    sums: dict[str, Float[Array, ""]]
    steps: Int[Array, ""]
    skipped: Int[Array, ""]
    bad_step: Int[Array, ""]
    bad_loss: Float[Array, ""]


def empty(loss: LossConfig) -> Tally:
    """The tally at an epoch's start, of what this loss and `make_loss` tell."""
    rest = ("unrest",) if loss.name in ("steady_state", "lyapunov") else ()
    names = ("loss", "accuracy", "nfe", "failed", *rest)
    number, count = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
    return Tally(dict.fromkeys(names, number), count, count, count, number)


@jax.jit
def add(tally: Tally, metrics: dict[str, Array], step: Int[Array, ""]) -> Tally:
    """With one step more: what `make_step` told of it, and its number from 1."""
    metrics = dict(metrics)
    bad = metrics.pop("bad")
    # Under jax_enable_x64 some are longer: the sums keep their type, step after step.
    metrics = {k: v.astype(tally.sums[k].dtype) for k, v in metrics.items()}
    first = bad & (tally.bad_step == 0)
    return Tally(
        {k: v + jnp.where(bad, 0, metrics[k]) for k, v in tally.sums.items()},
        tally.steps + jnp.where(bad, 0, 1),
        tally.skipped + jnp.where(bad, 1, 0),
        jnp.where(first, step, tally.bad_step),
        jnp.where(first, metrics["loss"], tally.bad_loss),
    )


def means(tally: Tally, batch_size: int) -> dict[str, float | int]:
    """The epoch's row: means of the metrics, and what was skipped or failed.

    `failed_solves` is the number of images whose solve ended at `max_steps`.
    """
    steps = int(tally.steps)
    row: dict = {k: float(v) / max(steps, 1) for k, v in tally.sums.items()}
    row["failed_solves"] = round(row.pop("failed") * steps * batch_size)
    row["skipped_steps"] = int(tally.skipped)
    return row


def check(tally: Tally, config: TrainConfig, total_steps: int, last: str) -> None:
    """Looks at a tally that the host has.

    **Arguments:** the tally; the configuration; the steps of the whole run; the last
    good checkpoint, for people.

    **Raises:** `NonFiniteLossError` for a bad step, unless such are skipped or where
    nothing else is left; `SolverFailedError` past the limit.
    """
    step, steps, skipped = (
        int(x) for x in (tally.bad_step, tally.steps, tally.skipped)
    )
    hopeless = steps == 0 and skipped >= 10
    if step and (hopeless or not config.skip_nonfinite):
        rate = learning_rate(config, total_steps, step)
        skipping = "" if config.skip_nonfinite else ", or set skip_nonfinite"
        raise NonFiniteLossError(
            f"At step {step} the loss was {float(tally.bad_loss):g}, or its gradient "
            f"not finite, at a learning rate of {rate:.3g}: lower learning_rate"
            f"{skipping}. The weights of that step were not taken; the last good "
            f"checkpoint is {last}."
        )
    share = float(tally.sums["failed"]) / max(steps, 1)
    if share > config.max_failed:
        raise SolverFailedError(
            f"{share:.1%} of this epoch's solves ended at max_steps="
            f"{config.solver.max_steps}, more than max_failed={config.max_failed:g}: "
            "allow more steps, loosen rtol and atol, or take a smaller Lipschitz "
            f"constant. The last good checkpoint is {last}."
        )
