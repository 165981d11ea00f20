r"""Local certificates, from the Jacobian around one image.

The logit difference $z_y - z_c$ changes along a segment by no more than the integral of
the gradient's norm. Near the image few units of the activations can switch, so the
gradient is close to that at the image. It is computed there, and its change over the
ball is bounded step by step in a backward pass through the solve.
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jnode.certify.amplification import stage_bounds, step_amplification
from jnode.certify.precision import certifying, check_certifiable, is_block
from jnode.certify.radius import margins, radii
from jnode.certify.rounding import inner_size, rounding
from jnode.constraints import measured
from jnode.fields import AbstractVectorField
from jnode.fields.base import bias_gain, safe_norm, time_invariant, vjp_change
from jnode.solvers import tableau
from jnode.solvers.fixed import combine

if TYPE_CHECKING:
    from jnode.models import AbstractLayer, ODEClassifier

PART = 8  # images at a time


def local_radius(
    model: "ODEClassifier",
    images: Float[Array, "batch height width channels"],
    *,
    shells: int = 12,
) -> Float[Array, " batch"]:
    r"""The certified L2 radius of each prediction, from bounds around its own image.

    The largest $r$ found with $\int_0^r K_c(s)\,ds \le z_y - z_c - \delta_c$ for every
    class $c$, where $K_c(s)$ bounds $\|\nabla(z_y - z_c)\|$ over the ball of radius
    $s$: by the gradient at the image plus, for each stage of each step, the change due
    to units that switch within the ball (see `jnode.activations.switching_bound`); or
    by the global constant, if that is smaller. Its allowances for rounding are those of
    `jnode.certify.radius`, stated and not proven.

    **Arguments:** a model; images `[n, height, width, channels]` with pixels in [0, 1];
    the number of shells of the ball, in each of which $K_c$ is taken at the outer end.

    **Returns:** radii in pixel units, nowhere smaller than those of `radius`; 0 where
    nothing is certified. The cost is some hundred solves for each image.

    **Raises:** as `radius`.
    """
    check_certifiable(model, images)
    return _local_radius(*widest(model, images), shells)


def widest(model, images):
    """Both cast to the most precise dtype among them and the times of the solve."""
    leaves = jax.tree.leaves(eqx.filter((model, images), eqx.is_inexact_array))
    dtype = np.result_type(*(x.dtype for x in leaves), jnp.zeros(()).dtype)
    cast = lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x  # noqa: E731
    return jax.tree.map(cast, (model, images))


@certifying
@eqx.filter_jit
def _local_radius(model, images, shells):
    model = measured(model)
    bounds = model.bounds()
    lipschitz = bounds.lipschitz
    known = all(
        isinstance(x.field, AbstractVectorField) if is_block(x, model) else x.affine
        for x in model.layers
    )
    if model.solver.adaptive or not known:
        return radii(model, bounds, images)

    def one(image):
        y, slack, gaps = margins(model, image, bounds)
        rows = model.head.rows()
        rows = rows[y][None] - rows
        parts, allowance = list(_forward(model, image)), rounding(model)
        others = jnp.arange(len(gaps)) != y

        def constants(r):
            """$K_c(r)$ for every class."""
            local = jax.vmap(lambda row: _gradient_bound(parts, row, r, allowance))
            return jnp.minimum(local(rows), lipschitz * gaps)

        def smallest(values):
            return jnp.maximum(jnp.min(jnp.where(others, values, jnp.inf)), 0)

        zero = jnp.zeros((), image.dtype)
        reach = smallest(slack / jnp.maximum(constants(zero), 1e-12))
        width = reach / shells

        def shell(left, index):
            # The fraction of the shell that each remaining margin covers.
            prices = constants((index + 1) * width)
            share = smallest(left / jnp.maximum(prices * width, 1e-12))
            return left - prices * width * (1 + 1e-6), jnp.minimum(share, 1)

        indices = jnp.arange(shells, dtype=image.dtype)
        _, shares = jax.lax.scan(shell, slack, indices)
        # The radius ends in the first shell that is not covered entirely.
        bought = jnp.cumprod(jnp.where(shares >= 1, 1.0, 0.0))
        partial = jnp.concatenate([jnp.ones(1), bought[:-1]]) * shares
        return jnp.sum(partial) * width * (1 - 1e-5)

    # Padded to a multiple of the part: a shorter rest would compile once more.
    n, part = len(images), max(1, min(len(images), PART))
    filled = jnp.resize(images, (-(-n // part) * part, *images.shape[1:]))
    # An unknown constant takes no part in the computation.
    found = jax.lax.cond(
        jnp.isfinite(lipschitz),
        lambda: jax.lax.map(one, filled, batch_size=part)[:n],
        lambda: jnp.zeros(n, images.dtype),
    )
    least = radii(model, bounds, images)
    return jnp.where(found > least, found, least)


@dataclasses.dataclass(frozen=True)
class _Affine:
    """A layer between the solves, its input, and its constant."""

    layer: "AbstractLayer"
    state: Float[Array, "..."]
    constant: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step of the solve of one image, and the size of its ball by then."""

    method: str
    field: AbstractVectorField
    t: float
    h: float
    stages: list[Float[Array, "*state"]]
    # For each stage: the ball's growth per unit of radius, and the rounding error.
    spreads: list[Float[Array, ""]]
    roundings: list[Float[Array, ""]]
    # The amplification of the step.
    factor: Float[Array, ""]


def _forward(model: "ODEClassifier", image) -> Iterator[_Affine | _Step]:
    y, allowance = image, rounding(model)
    spread = error = jnp.ones((), image.dtype)
    added = jnp.zeros((), image.dtype)
    for layer in model.layers:
        # The rounding error of this layer has not been amplified yet.
        error = jnp.maximum(error, 1)
        if not is_block(layer, model):
            constant = layer.lipschitz().astype(y.dtype)
            yield _Affine(layer, y, constant)
            y = layer(y)
            # Rounding up the steps below covers the rounding of this product.
            spread, error = spread * constant, error * constant
            added = added + inner_size(layer, y.size).astype(y.dtype)
            continue
        name = layer.solver.name
        a, b, c = (x.tolist() for x in tableau(name))
        schedule = layer.solver.plan(layer.field, layer.t0, layer.t1)
        for k, t, h in schedule.numbers():
            field = schedule.at(layer.field, k)
            bounds = field.bounds()
            factor = step_amplification(name, h, bounds)
            _, _, inner = stage_bounds(name, bounds.lipschitz * h)
            ks, stages = [], []
            step = jnp.asarray(h, y.dtype)
            for i in range(len(b)):
                stages.append(y + combine(step, a[i][:i], ks, y))
                ks.append(field(t + c[i] * h, stages[-1]))
            grown = [(1 + s) * (1 + 1e-5) for s in inner]
            spreads = [spread * g for g in grown]
            gain = jnp.maximum(1, abs(h) * bias_gain(field))
            if not time_invariant(field):
                gain = gain * max(1.0, abs(t), abs(t + h))
            biases = inner_size(field, y.size) * gain + added
            roundings = [
                allowance * (1 + safe_norm(stage) + biases) * jnp.maximum(1, error * g)
                for stage, g in zip(stages, grown, strict=True)
            ]
            yield _Step(name, field, t, h, stages, spreads, roundings, factor)
            y = y + combine(step, b, ks, y)
            spread = spread * factor * (1 + 1e-6)
            error = jnp.maximum(1, error * factor * (1 + 1e-6))


def _gradient_bound(
    parts: list[_Affine | _Step], row, r, allowance: float
) -> Float[Array, ""]:
    """A bound on the gradient of <row, features> over the ball of radius `r`.

    In the backward pass the cotangent is a center and a radius. The transposed Jacobian
    of a layer or step amplifies that radius by at most its Lipschitz constant.
    """
    center, radius = row, jnp.zeros_like(r)
    # By how much what comes after can have amplified rounding errors.
    amplified = jnp.ones_like(r)
    for part in reversed(parts):
        if isinstance(part, _Affine):
            output, pull = jax.vjp(part.layer, part.state)
            center = pull(center.reshape(output.shape))[0]
            amplified = amplified * jnp.maximum(part.constant, 1)
            radius = part.constant * radius
        else:
            center = center.reshape(part.stages[0].shape)
            center, radius = _pull_back(part, center, radius, r)
            amplified = amplified * jnp.maximum(part.factor, 1)
    return safe_norm(center) + allowance * safe_norm(row) * amplified + radius


def _pull_back(step: _Step, center, radius, r):
    """Pulls the cotangent at a step's end, a center and a radius, back to its start."""
    a, b, c = (x.tolist() for x in tableau(step.method))
    pulled, spreads = {}, {}
    lipschitz = step.field.lipschitz().astype(r.dtype)
    for i in reversed(range(len(b))):
        later = [m for m in pulled if a[m][i] != 0]
        if b[i] == 0 and not later:
            continue
        cotangent = step.h * b[i] * center
        spread = jnp.zeros_like(r)
        for m in later:
            cotangent = cotangent + step.h * a[m][i] * pulled[m]
            spread = spread + step.h * abs(a[m][i]) * spreads[m]
        t, state = step.t + c[i] * step.h, step.stages[i]
        _, pull = jax.vjp(lambda y, t=t, f=step.field: f(t, y), state)
        change = vjp_change(
            step.field, t, state, cotangent, r * step.spreads[i], step.roundings[i]
        )
        pulled[i] = pull(cotangent)[0]
        spreads[i] = lipschitz * spread + change
    center = center + sum(pulled.values(), start=jnp.zeros_like(center))
    radius = step.factor * radius + sum(spreads.values(), start=jnp.zeros_like(r))
    return center, radius * (1 + 1e-5)
