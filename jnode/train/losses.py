"""What training minimises."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, Key

from jnode.attacks import PGD, Budget
from jnode.constraints import resolve
from jnode.fields.base import takes_batches, time_invariant
from jnode.models import ODEBlock, ODEClassifier
from jnode.models.batched import batched
from jnode.models.batched import logits as logits_of
from jnode.solvers import trajectory
from jnode.train import ibp

LOSSES = ("natural", "margin", "ibp", "steady_state", "lyapunov")
INPUTS = ("clean", "noise", "adversarial")
# Rows of the Jacobian that the Lyapunov loss looks at, of each image.
ROWS = 8


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What training minimises.

    - `name`: "natural" (cross-entropy), "margin" (Lipschitz-margin training), "ibp"
        (certified in Linf by intervals, `jnode.train.ibp`), "steady_state" (TisODE) or
        "lyapunov" (SODEF): natural plus a term that makes the end of the trajectory a
        equilibrium.
    - `inputs`: the images it is taken on: "clean", "noise" (some with Gaussian noise)
        or "adversarial" (attacked by PGD).
    - `logit_scale`: factor of the logits in the cross-entropy, positive; above 1 for
        unit-norm heads.
    - `rho`: margin loss: the certified L2 radius, in pixel units, that is asked of each
        image: larger radii are certified for it, and fewer images classified rightly.
    - `sigma`, `share`: noise: its standard deviation, in pixel units, and the share of
        the images that get some.
    - `norm`, `epsilon`, `steps`: adversarial: the PGD attack, in pixel units; ibp: the
        Linf radius `epsilon` that is reached at the end of the ramp.
    - `kappa`, `ramp`: ibp: the weight of the natural entropy at the end of the ramp,
        which starts at 1; and the share of training after which the ramp ends.
    - `weight`: steady_state, lyapunov: of the added term.
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

    Each image has a key of its own, so that its random numbers do not depend on the
    images beside it. `progress` is the share of training that is done, one number for
    each image, by default 1; "ibp" alone looks at it. All results are means over the
    images.

    `aux` holds the batch's accuracy (on the images that the loss sees), mean `nfe`, and
    `failed`, the share of solves that ended at `max_steps`, whose images count with the
    state that was reached; with a term for rest, its value `penalty`; for "ibp"
    `certified`, the share that is proven right at the radius of this step.
    """

    def loss(model, images, labels, keys, progress=None):
        # One pass: the bounds that the margin asks for come with the weights.
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
        if config.name not in _RESTS:
            return jnp.mean(entropy), aux
        penalty = jnp.mean(_RESTS[config.name](model, solutions.y, keys))
        aux["penalty"] = penalty
        return jnp.mean(entropy) + config.weight * penalty, aux

    return loss


def add_margins(
    logits: Float[Array, "b classes"],
    labels: Int[Array, " b"],
    rows: Float[Array, "classes features"],
    reach: Float[Array, ""],
) -> Float[Array, "b classes"]:
    r"""The least favourable logits of nearby images: the margin loss is their entropy.

    $z_c + r\,\|w_y - w_c\|$ for every class $c$, where $y$ is the true one. While the
    features move by no more than $r$, no class gains more on the true one, so an image
    whose true class still wins is certified. This is Lipschitz-margin training (Tsuzuku
    et al., NeurIPS 2018) with the gap of each pair of classes in place of the largest.

    **Arguments:** the logits and the true classes; the head's rows $w_c$; how far the
    features may move, $r = L\rho$.
    """
    squares = jnp.sum(rows**2, axis=1)
    products = jnp.matmul(rows, rows.T, precision="highest")
    squares = squares[:, None] + squares[None] - 2 * products
    # Rounding leaves less than nothing between equal rows, where a root has no slope.
    gaps = jnp.sqrt(jnp.maximum(squares, 1e-12))
    gaps = jnp.where(jnp.eye(len(rows), dtype=bool), 0, gaps)
    return logits + reach * gaps[labels]


def steady_state_penalty(
    model: ODEClassifier, states: Float[Array, " b *state"], keys: Key[Array, " b"]
) -> Float[Array, " b"]:
    r"""$\int_T^{2T} |f(y(t))|\,dt$ beyond the end $T = 1$, a mean over the state.

    The steady-state constraint of TisODE (Yan et al., ICLR 2020), by the trapezoidal
    rule on the states that the solver passes through. With several blocks it is of the
    last one, for as long again as it lasts. Its field must be time-invariant.

    **Raises:** `ValueError` for one that is not, or a model that ends with no block.
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
    softplus in place of exp, which overflows there. With several blocks it is of the
    last one.

    **Raises:** `ValueError` for a model that ends with no block.
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
    frozen = jax.lax.stop_gradient
    model = jax.tree.map(lambda x: frozen(x) if hasattr(x, "dtype") else x, model)

    attack, budget = PGD(steps=config.steps), Budget(config.norm, config.epsilon)
    classify = partial(batched(model), throw=False)
    return frozen(attack.from_keys(classify, images, labels, budget, keys))
