"""The certified radius of a model whose solver takes its steps from a ladder."""

from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jnode.bounds import down, gamma, up
from jnode.certify.decisions import evaluation
from jnode.certify.paths import Nodes, Solve, explore, started
from jnode.certify.precision import is_block
from jnode.certify.rounding import head_allowance, inner_size, long_rows
from jnode.fields.base import safe_norm
from jnode.solvers import LadderController

if TYPE_CHECKING:
    from jnode.models import ModelBounds, ODEClassifier

ROUNDS = 2
"""How many times the search is repeated with a smaller limit."""


class Certified(NamedTuple):
    """The radii of some images, and the number of attempts that finding them took."""

    radii: Float[Array, " images"]
    attempts: Int[Array, " images"]


def adaptive_radii(
    model: "ODEClassifier",
    bounds: "ModelBounds",
    images: Float[Array, "images height width channels"],
) -> Certified:
    r"""Each prediction's certified radius, over every path that its ball can reach.

    The first search takes the image's own path, whose grid certifies $\rho$ if no other
    path can be taken; the second one takes all paths with an entry below $\rho$. Since
    nodes are merged, a search with a smaller limit may give a larger radius, so limits
    in between are tried too. The largest radius of all searches is returned.
    """
    dtypes = (images.dtype, bounds.lipschitz.dtype, jnp.zeros(()).dtype)
    with jax.numpy_dtype_promotion("standard"):
        images = images.astype(jnp.result_type(*dtypes))
    tiny = jnp.full(len(images), jnp.finfo(images.dtype).tiny)
    none = jnp.zeros_like(tiny)

    def search(carry, index):
        limit, best, attempts, y = carry
        ends, lost, more = _reached(model, bounds, images, limit)
        own = jax.vmap(lambda state: jnp.argmax(model.head(state.ravel())))
        y = jnp.where(index == 0, own(ends.state[:, 0]).astype(y.dtype), y)
        least = jnp.minimum(_least(model, ends, y), lost)
        found = jnp.minimum(least, limit)
        best = jnp.maximum(best, found)
        # If the radius reached the limit, no smaller limit gives more.
        narrower = jnp.where(found < limit, (best + limit) / 2, none)
        first = jnp.where(jnp.isfinite(least), least, none)
        limit = jnp.where(index == 0, first, narrower)
        return (limit, best, attempts + more, y), None

    zero = jnp.zeros(len(images), jnp.int32)
    rounds = jnp.arange(2 + ROUNDS, dtype=jnp.int32)
    carry, _ = jax.lax.scan(search, (tiny, none, zero, zero), rounds)
    return Certified(carry[1] * (1 - 1e-5), carry[2])


def is_certifiable(model: "ODEClassifier") -> bool:
    """Whether the solver is a ladder and every field and layer has known constants."""
    bounds = model.bounds()
    others = [
        constant
        for layer, constant in zip(model.layers, bounds.layers, strict=True)
        if not is_block(layer, model)
    ]
    fields = [x.lipschitz for segments in bounds.fields for x in segments]
    return all(bool(jnp.isfinite(x)) for x in (*others, *fields))


def _least(model, ends: Nodes, y) -> Float[Array, " images"]:
    r"""The smallest $\max(\mathrm{entry}, \rho)$ of the nodes at the end."""
    rows = model.head.rows()
    more = 1 + gamma(rows.shape[1] + 8, ends.entry.dtype)

    def one(node, y):
        features = node.state.ravel()
        logits = model.head(features)
        gaps = jax.vmap(safe_norm)(rows[y][None] - rows)
        slack = logits[y] - logits - head_allowance(model.head, safe_norm(features), y)
        others = jnp.arange(len(gaps), dtype=y.dtype) != y
        share = jnp.min(jnp.where(others, slack / up(gaps * more), jnp.inf))
        share = down(down(share) - node.slack) / node.growth
        # Of a NaN nothing is known.
        return jnp.maximum(node.entry, jnp.where(share > 0, down(share), 0))

    each = jax.vmap(jax.vmap(one, in_axes=(0, None)))(ends, y)
    each = jnp.where(jnp.isfinite(ends.entry), each, jnp.inf)
    return jnp.min(each, axis=1)


def _reached(model, bounds, images, limit):
    """The nodes after the last layer, the smallest entry that was dropped, and the
    number of attempts."""
    zero = jnp.zeros_like(limit)
    nodes = started(images, zero, zero + 1)
    lost, attempts = zero + jnp.inf, jnp.zeros(len(images), jnp.int32)
    fields = iter(bounds.fields)
    for layer, constant in zip(model.layers, bounds.layers, strict=True):
        if not is_block(layer, model):
            nodes = _through(layer, constant.astype(limit.dtype), nodes)
            continue
        for solve in _segments(layer, next(fields), limit.dtype):
            found = explore(solve, nodes, limit)
            nodes, lost = found.ends, jnp.minimum(lost, found.lost)
            attempts = attempts + found.attempts
    return nodes, lost, attempts


def _through(layer: Any, constant: Float[Array, ""], nodes: Nodes) -> Nodes:
    """The nodes after a layer other than an ODE block."""
    constant = up(constant)
    states = jax.vmap(jax.vmap(layer))(nodes.state)
    sizes = [jax.vmap(jax.vmap(safe_norm))(x) for x in (nodes.state, states)]
    share = evaluation(states.dtype) * long_rows(layer)
    biases = inner_size(layer, states[0, 0].size).astype(states.dtype)
    noise = share * (constant * sizes[0] + sizes[1] + biases)
    growth = up(constant * (1 + 2 * share))
    slack, wider = up(up(growth * nodes.slack) + up(2 * noise)), growth * nodes.growth
    return eqx.tree_at(
        lambda n: (n.state, n.slack, n.growth), nodes, (states, slack, up(wider))
    )


def _segments(block, fields, dtype):
    """The solves between the jumps of a block's field."""
    solver = block.solver
    schedule = solver.plan(block.field, block.t0, block.t1)
    rtol, atol = solver.tolerances
    ladder = LadderController(rtol, atol, solver.first_step, solver.doubles)
    for k, (part, bounds) in enumerate(zip(schedule.parts, fields, strict=True)):
        field = schedule.at(block.field, k)
        times = float(part.t0), float(part.t1)
        bounds = jax.tree.map(lambda x: x.astype(dtype), bounds)
        yield Solve(field, bounds, solver.diffrax(), ladder, times, solver.max_steps)
