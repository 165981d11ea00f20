r"""Certificates from the Jacobian around one image, where they beat the global ones.

The logit difference $z_y - z_c$ changes along a segment by no more than the integral of
the gradient's norm. Near the image few units of the activations can switch, so the
gradient is nearly the one at the image: it is computed there, and what a ball may add
to it is bounded step by step on the way back through the solve.
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
from jnode.certify.precision import certifying, check_certifiable
from jnode.certify.radius import ROUNDING, margins, radii
from jnode.certify.rounding import inner_size
from jnode.constraints import measured
from jnode.fields import AbstractVectorField
from jnode.fields.base import safe_norm, vjp_change
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
    $s$: by the gradient at the image plus, for each stage of each step, what units that
    switch within the ball can add (see `jnode.activations.switching_bound`); or by the
    global constant, where that is less. Its allowances for rounding are those of
    `jnode.certify.radius`, stated and not proven.

    **Arguments:** a model; images with pixels in [0, 1]; in how many shells the ball is
    cut, in each of which $K_c$ is taken at the outer end.

    **Returns:** radii in pixel units, nowhere smaller than those of `radius`; 0 where
    nothing is certified. It costs some hundred solves an image.

    **Raises:** as `radius`.
    """
    check_certifiable(model, images)
    return _local_radius(*widest(model, images), shells)


def widest(model, images):
    """Both in the longest type among them and the solve's times."""
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
    curved = sum(not layer.affine for layer in model.layers)
    if model.solver.adaptive or curved > len(model.blocks):
        return radii(model, bounds, images)

    def one(image):
        y, slack, gaps = margins(model, image, bounds)
        rows = model.head.rows()
        rows = rows[y][None] - rows
        parts = list(_forward(model, image))
        others = jnp.arange(len(gaps)) != y

        def constants(r):
            """$K_c(r)$ for every class."""
            local = jax.vmap(lambda row: _gradient_bound(parts, row, r))
            return jnp.minimum(local(rows), lipschitz * gaps)

        def smallest(values):
            return jnp.maximum(jnp.min(jnp.where(others, values, jnp.inf)), 0)

        zero = jnp.zeros((), image.dtype)
        reach = smallest(slack / jnp.maximum(constants(zero), 1e-12))
        width = reach / shells

        def shell(left, index):
            # What is left of each margin buys this share of the shell, if not all.
            prices = constants((index + 1) * width)
            share = smallest(left / jnp.maximum(prices * width, 1e-12))
            return left - prices * width * (1 + 1e-6), jnp.minimum(share, 1)

        indices = jnp.arange(shells, dtype=image.dtype)
        _, shares = jax.lax.scan(shell, slack, indices)
        # The ball ends in the first shell that is not bought whole.
        bought = jnp.cumprod(jnp.where(shares >= 1, 1.0, 0.0))
        partial = jnp.concatenate([jnp.ones(1), bought[:-1]]) * shares
        return jnp.sum(partial) * width * (1 - 1e-5)

    # Filled up to whole parts: what is left over would be compiled once more.
    n, part = len(images), max(1, min(len(images), PART))
    filled = jnp.resize(images, (-(-n // part) * part, *images.shape[1:]))
    # Where no constant is known, nothing is computed with it.
    return jax.lax.cond(
        jnp.isfinite(lipschitz),
        lambda: jax.lax.map(one, filled, batch_size=part)[:n],
        lambda: jnp.zeros(n, images.dtype),
    )


@dataclasses.dataclass(frozen=True)
class _Affine:
    """A layer between the solves, what it was given, and its constant."""

    layer: "AbstractLayer"
    state: Float[Array, "..."]
    constant: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step of the solve of one image, and how far its ball may have spread."""

    method: str
    field: AbstractVectorField
    t: float
    h: float
    stages: list[Float[Array, "*state"]]
    # Of each stage, per unit of the ball's radius; and how far it is off by rounding.
    spreads: list[Float[Array, ""]]
    roundings: list[Float[Array, ""]]
    # How far the step stretches the ball.
    factor: Float[Array, ""]


def _forward(model: "ODEClassifier", image) -> Iterator[_Affine | _Step]:
    y, blocks = image, iter(model.blocks)
    spread = error = jnp.ones((), image.dtype)
    added = jnp.zeros((), image.dtype)
    for layer in model.layers:
        # What is rounded here has grown by nothing yet.
        error = jnp.maximum(error, 1)
        if layer.affine:
            constant = layer.lipschitz().astype(y.dtype)
            yield _Affine(layer, y, constant)
            y = layer(y)
            # What steps round up below has room for this product's rounding.
            spread, error = spread * constant, error * constant
            added = added + inner_size(layer, y.size).astype(y.dtype)
            continue
        block = next(blocks)
        name = block.solver.name
        a, b, c = (x.tolist() for x in tableau(name))
        schedule = block.solver.plan(block.field, block.t0, block.t1)
        for k, t, h in schedule.numbers():
            field = schedule.at(block.field, k)
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
            roundings = [
                ROUNDING
                * (1 + safe_norm(stage) + inner_size(field, stage.size) + added)
                * jnp.maximum(1, error * g)
                for stage, g in zip(stages, grown, strict=True)
            ]
            yield _Step(name, field, t, h, stages, spreads, roundings, factor)
            y = y + combine(step, b, ks, y)
            spread = spread * factor * (1 + 1e-6)
            error = error * factor * (1 + 1e-6)


def _gradient_bound(parts: list[_Affine | _Step], row, r) -> Float[Array, ""]:
    """A bound on the gradient of <row, features> over the ball of radius `r`.

    On the way back the cotangent is known as a center and a radius. A layer's or step's
    transposed Jacobian stretches that radius by no more than it itself stretches.
    """
    center, radius = row, jnp.zeros_like(r)
    # By how much the affine layers behind can have stretched what was rounded.
    stretch = jnp.ones_like(r)
    for part in reversed(parts):
        if isinstance(part, _Affine):
            output, pull = jax.vjp(part.layer, part.state)
            center = pull(center.reshape(output.shape))[0]
            stretch = stretch * jnp.maximum(part.constant, 1)
            radius = part.constant * radius
        else:
            center = center.reshape(part.stages[0].shape)
            center, radius = _pull_back(part, center, radius, r)
    return safe_norm(center) + ROUNDING * safe_norm(row) * stretch + radius


def _pull_back(step: _Step, center, radius, r):
    """The cotangent at a step's end, as a center and a radius, taken to its start."""
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
