"""Training losses."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, Key

from jnode.attacks import PGD, Budget
from jnode.attacks.losses import loss_and_gradient
from jnode.constraints import resolve
from jnode.fields.base import takes_batches, time_invariant
from jnode.models import ODEBlock, ODEClassifier
from jnode.models.batched import batched
from jnode.models.batched import logits as logits_of
from jnode.solvers import trajectory
from jnode.train import ibp

PENALISED = ("trades", "steady_state", "lyapunov")
LOSSES = ("natural", "margin", "ibp", *PENALISED)
INPUTS = ("clean", "noise", "adversarial")
# The number of rows of each image's Jacobian that the Lyapunov loss uses.
ROWS = 8


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What training minimises.

    - `name`: "natural" (cross-entropy), "margin" (Lipschitz-margin training), "ibp"
        (certified in Linf by intervals, `jnode.train.ibp`), "trades" (cross-entropy of
        the clean images plus a penalty on how far an attack moves the predicted
        distribution), "steady_state" (TisODE) or "lyapunov" (SODEF): cross-entropy plus
        a penalty that makes the end of the trajectory an equilibrium.
    - `inputs`: the images of the loss: "clean", "noise" (some with Gaussian noise) or
        "adversarial" (attacked by PGD).
    - `logit_scale`: the positive factor of the logits in the cross-entropy (an inverse
        temperature); above 1 for unit-norm heads.
    - `rho`: for "margin", the certified L2 radius, in pixel units, that the loss
        demands of each image. A larger one gives larger radii and less clean accuracy.
    - `sigma`, `share`: for "noise", its standard deviation, in pixel units, and the
        fraction of noisy images.
    - `norm`, `epsilon`, `steps`: for "adversarial" and "trades", the PGD attack, in
        pixel units; for "ibp", `epsilon` is the Linf radius at the end of the ramp.
    - `kappa`, `ramp`: for "ibp", the weight of the clean cross-entropy at the end of
        the ramp, which starts at 1; and the fraction of training after which the ramp
        ends.
    - `weight`: for "trades", "steady_state" and "lyapunov", the weight of the penalty;
        for "trades" 6 is usual.

    **Raises:** `ValueError` for a value out of its range, naming the option.
    """

    name: str = "natural"
    inputs: str = "clean"
    logit_scale: float = 1.0
    rho: float = 0.5
    sigma: float = 0.2
    share: float = 1.0
    norm: str = "linf"
    epsilon: float = 0.1
    steps: int = 10
    weight: float = 0.1
    kappa: float = 0.5
    ramp: float = 0.6

    def __post_init__(self):
        if self.name not in LOSSES:
            raise ValueError(
                f"loss name must be one of {', '.join(LOSSES)}, not {self.name!r}."
            )
        if self.inputs not in INPUTS:
            raise ValueError(
                f"loss inputs must be one of {', '.join(INPUTS)}, not {self.inputs!r}."
            )
        for name in ("share", "kappa", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} must be in [0, 1], not {getattr(self, name)!r}."
                )
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps!r}.")
        if not self.logit_scale > 0:
            raise ValueError(f"logit_scale must be positive, not {self.logit_scale!r}.")
        for name in ("rho", "sigma", "epsilon", "weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"{name} must be at least 0, not {getattr(self, name)!r}."
                )


Loss = Callable[..., tuple[Float[Array, ""], dict]]


def make_loss(config: LossConfig) -> Loss:
    """The loss of a batch: `loss(model, images, labels, keys, progress) -> value, aux`.

    Each image has its own key, so that its random numbers do not depend on the rest of
    the batch. `progress` is the finished fraction of training, one number for each
    image, by default 1; only "ibp" uses it. All results are means over the images.

    `aux` holds the batch's accuracy (on the images of the loss), mean `nfe`, and
    `failed`, the fraction of solves that stopped at `max_steps`, whose last state is
    used; for "trades", "steady_state" and "lyapunov" the `penalty`; for "ibp"
    `certified`, the fraction of images proven right at the radius of this step.
    """

    def loss(model, images, labels, keys, progress=None):
        # One pass gives the weights and the bounds that the margin needs.
        model, bounds = resolve(model)
        if config.inputs == "noise":
            images = _noisy(images, keys, config)
        elif config.inputs == "adversarial":
            images = _adversarial(model, images, labels, keys, config)
        solutions = batched(model).solution(images, throw=False)
        logits = logits_of(model, solutions.y)
        accuracy = jnp.mean((jnp.argmax(logits, axis=1) == labels).astype(jnp.float32))
        if config.name == "margin":
            reach = bounds.lipschitz * config.rho
            logits = add_margins(logits, labels, model.head.rows(), reach)
        entropy = optax.softmax_cross_entropy_with_integer_labels(
            config.logit_scale * logits, labels
        )
        nfe = jnp.mean(solutions.stats["nfe"].astype(jnp.float32))
        failed = jnp.mean((solutions.stats["num_failed"] > 0).astype(jnp.float32))
        aux = {"accuracy": accuracy, "nfe": nfe, "failed": failed}
        if config.name == "ibp":
            ramp = jnp.ones(len(labels)) if progress is None else progress
            ramp = ibp.ramp(ramp, config.ramp)
            inputs = (images, labels, config.epsilon * ramp, config.logit_scale)
            worst, proven = ibp.worst_entropy(model, *inputs)
            aux["certified"] = jnp.mean(proven.astype(jnp.float32))
            kappa = 1 - (1 - config.kappa) * ramp
            return jnp.mean(kappa * entropy + (1 - kappa) * worst), aux
        if config.name not in PENALISED:
            return jnp.mean(entropy), aux
        if config.name == "trades":
            each = trades_penalty(model, images, logits, keys, config)
        else:
            each = _RESTS[config.name](model, solutions.y, keys)
        penalty = jnp.mean(each)
        aux["penalty"] = penalty
        return jnp.mean(entropy) + config.weight * penalty, aux

    return loss


def add_margins(
    logits: Float[Array, "b classes"],
    labels: Int[Array, " b"],
    rows: Float[Array, "classes features"],
    reach: Float[Array, ""],
) -> Float[Array, "b classes"]:
    r"""The least favourable logits of nearby images, for the margin loss.

    These are $z_c + r\,\|w_y - w_c\|$ for every class $c$, where $y$ is the true one.
    As long as the features move by at most $r$, no class can gain more than this on the
    true one, so an image whose true class still wins is certified. The margin loss is
    the cross-entropy of these logits. This is Lipschitz-margin training (Tsuzuku et
    al., NeurIPS 2018) with the gap of each pair of classes in place of the largest.

    **Arguments:** the logits and the true classes; the head's rows $w_c$; how far the
    features may move, $r = L\rho$.
    """
    squares = jnp.sum(rows**2, axis=1)
    products = jnp.matmul(rows, rows.T, precision="highest")
    squares = squares[:, None] + squares[None] - 2 * products
    # For equal rows, rounding may give a negative number, and a root has no slope at 0.
    gaps = jnp.sqrt(jnp.maximum(squares, 1e-12))
    gaps = jnp.where(jnp.eye(len(rows), dtype=bool), 0, gaps)
    return logits + reach * gaps[labels]


def trades_penalty(
    model: ODEClassifier,
    images: Float[Array, "b height width channels"],
    logits: Float[Array, "b classes"],
    keys: Key[Array, " b"],
    config: LossConfig,
) -> Float[Array, " b"]:
    r"""The Kullback-Leibler divergence $D(p(x) \| p(x'))$ of the predictions for an
    image and its adversarial example.

    $x'$ is found by PGD on the divergence itself, from a random start (TRADES; Zhang et
    al., ICML 2019). `logits` are those of the clean `images`; both distributions are
    softmaxes at `logit_scale`.
    """
    budget = Budget(config.norm, config.epsilon).of_each(images)
    length = 2.5 * budget.epsilon / config.steps
    classify = partial(batched(model), throw=False)
    fixed = partial(batched(_without_gradient(model)), throw=False)

    def divergence(clean, moved):
        clean, moved = (
            jax.nn.log_softmax(config.logit_scale * z) for z in (clean, moved)
        )
        return jnp.sum(jnp.exp(clean) * (clean - moved), axis=1)

    def step(_, moved):
        value = partial(divergence, jax.lax.stop_gradient(logits))
        _, _, gradient = loss_and_gradient(fixed, moved, value)
        return budget.step(moved, gradient, length, images)

    start = budget.random_starts(images, keys)
    found = jax.lax.fori_loop(0, config.steps, step, start)
    return divergence(logits, classify(jax.lax.stop_gradient(found)))


def steady_state_penalty(
    model: ODEClassifier, states: Float[Array, " b *state"], keys: Key[Array, " b"]
) -> Float[Array, " b"]:
    r"""$\int_T^{2T} |f(y(t))|\,dt$ beyond the end $T = 1$, a mean over the state.

    The steady-state constraint of TisODE (Yan et al., ICLR 2020), by the trapezoidal
    rule on the states that the solver passes through. With several blocks it is that of
    the last block, continued for its own duration. Its field must be time-invariant.

    **Raises:** `ValueError` for a field that is not, or a model that does not end with
    an ODE block.
    """
    del keys
    block = _last_block(model)
    field = block.field
    if not time_invariant(field):
        raise ValueError(
            "the last block's field must be time-invariant for the steady-state loss, "
            "as an equilibrium of one field is none of the next: leave out time, and "
            "segments."
        )
    t0, t1 = block.t1, 2 * block.t1 - block.t0

    def speeds(y):
        times, path = trajectory(field, y, block.solver, t0=t0, t1=t1)
        rates = jax.lax.map(lambda y: field(t0, y), path)
        return jnp.asarray(times, rates.dtype), jnp.abs(rates)

    if takes_batches(field) and not block.solver.adaptive:
        times, rates = speeds(jnp.moveaxis(states, 0, -2))
        rates = jnp.moveaxis(rates, -2, 0)
        times = jnp.broadcast_to(times, rates.shape[:2])
    else:
        times, rates = jax.vmap(speeds)(states)
    means = jnp.mean(rates.reshape(*times.shape, -1), axis=2)
    return jax.vmap(jnp.trapezoid)(means, times)


def lyapunov_penalty(
    model: ODEClassifier, states: Float[Array, " b *state"], keys: Key[Array, " b"]
) -> Float[Array, " b"]:
    r"""How far each end $y(T)$ is from being a Lyapunov-stable equilibrium.

    $\|f(y)\|_2/\sqrt{n} + s(\overline{J_{ii}}) + s(\overline{\sum_{j \ne i}|J_{ij}| -
    |J_{ii}|})$ with the softplus $s$: the field vanishes, and its Jacobian has a
    negative and dominant diagonal, so that its eigenvalues lie in the left half plane
    (Gershgorin). After SODEF (Kang et al., NeurIPS 2021), with means over a few random
    rows $i$ in place of sums over all, of which a convolution has too many, and
    softplus in place of exp, which overflows there. With several blocks it is that of
    the last one.

    **Raises:** `ValueError` for a model that does not end with an ODE block.
    """
    block = _last_block(model)

    def one(y, key):
        value, pull = jax.vjp(lambda y: block.field(block.t1, y), y)
        rows = jr.choice(key, y.size, (min(ROWS, y.size),), replace=False)
        units = jax.nn.one_hot(rows, y.size, dtype=y.dtype).reshape(-1, *y.shape)
        jacobian = jax.vmap(lambda u: pull(u)[0])(units).reshape(len(rows), -1)
        diagonal = jnp.take_along_axis(jacobian, rows[:, None], axis=1)[:, 0]
        others = jnp.sum(jnp.abs(jacobian), axis=1) - jnp.abs(diagonal)
        speed = jnp.sqrt(jnp.mean(value**2) + 1e-12)
        dominance = jnp.mean(others - jnp.abs(diagonal))
        softplus = jax.nn.softplus
        return speed + softplus(jnp.mean(diagonal)) + softplus(dominance)

    return jax.vmap(one)(states, keys)


def _last_block(model: ODEClassifier) -> ODEBlock:
    block = model.layers[-1]
    if not isinstance(block, ODEBlock):
        raise ValueError(
            "the model's last layer must be an ODEBlock for a loss that asks its end "
            f"to be an equilibrium, not {type(block).__name__}."
        )
    return block


_RESTS = {"steady_state": steady_state_penalty, "lyapunov": lyapunov_penalty}


def _noisy(images, keys, config):
    def one(image, key):
        noise_key, key = jr.split(key)
        noisy = jnp.clip(image + config.sigma * jr.normal(noise_key, image.shape), 0, 1)
        return jnp.where(jr.bernoulli(key, config.share), noisy, image)

    return jax.vmap(one)(images, keys)


def _adversarial(model, images, labels, keys, config):
    attack, budget = PGD(steps=config.steps), Budget(config.norm, config.epsilon)
    classify = partial(batched(_without_gradient(model)), throw=False)
    found = attack.from_keys(classify, images, labels, budget, keys)
    return jax.lax.stop_gradient(found)


def _without_gradient(model):
    frozen = jax.lax.stop_gradient
    return jax.tree.map(lambda x: frozen(x) if hasattr(x, "dtype") else x, model)
