r"""All grids that an adaptive solve can take from a ball of states.

A step-size controller with finitely many states (`jnode.solvers.LadderController`)
takes one of countably many *paths*: lists of attempts with their outcomes. For a path
$p$ let `entry` be a distance below which no input takes it. Each attempt of $p$ gives
such a distance: the amount by which the value of its decision must change to have the
sign that $p$ requires, divided by the Lipschitz constant of that value along $p$.
`entry` is the largest of these. The map along $p$ is defined for every input, so the
value is computed at the centre even if the centre itself takes another path. An input
within $r$ takes some path with entry less than $r$. If each of these paths, as a fixed
grid, has the same prediction everywhere within $r$, then so has the adaptive solver. So
with $\rho_p$ the radius that grid $p$ certifies, $r^* = \min_p \max(\mathrm{entry}_p,
\rho_p)$ is a certified radius, even though the solver jumps from grid to grid inside
the ball.

Paths that reach the same time with the same next step share a *node*: a ball of states
around a centre, $\|y - y_c\| \le A r + \delta$ for inputs within $r$. A few nodes are
kept for each time and step; beyond that two of them are merged into a ball that
contains both. Paths that are not explored, for lack of memory or attempts, count as not
certified.
"""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jnode.bounds import Bounds, down, gamma, up
from jnode.certify.decisions import Constants, Sizes, attempt_noise, constants
from jnode.certify.rounding import inner_size
from jnode.solvers.fixed import RightHandSide, combine
from jnode.solvers.ladder import DEPTH, LadderController, Rung
from jnode.solvers.tableaus import embedded_pair, stage_time

WIDTH = 6
"""How many nodes of one time and next step are kept before two are merged."""
SLOTS = 32
"""How many unexplored nodes are stored at a time."""
ATTEMPTS = 400
"""The most attempts for one image in a segment of time."""
LANES = 32
"""How many images are explored at a time; a finished one is replaced by the next."""


class Nodes(eqx.Module):
    r"""Balls of states, $\|y - y_c\| \le A r + \delta$ for every input within $r$.

    - `state`: $y_c$; `slack`: $\delta$; `growth`: $A$.
    - `entry`: the distance below which no input reaches the node; `inf` for an empty
        slot.
    - `rung`: the controller's state; `taken`: the most attempts on a path to the node.
    """

    state: Float[Array, "..."]
    slack: Float[Array, "*nodes"]
    growth: Float[Array, "*nodes"]
    entry: Float[Array, "*nodes"]
    rung: Rung
    taken: Int[Array, "*nodes"]


class Solve(NamedTuple):
    """One segment of a solve: the field, its bounds, and how it is integrated."""

    field: Any
    bounds: Bounds
    method: diffrax.AbstractERK
    ladder: LadderController
    times: tuple[float, float]
    max_steps: int


class Explored(NamedTuple):
    """The result for each image.

    - `ends`: the nodes at the end of the segment.
    - `lost`: the smallest entry of all nodes that were not explored.
    - `attempts`: the number of attempts.
    """

    ends: Nodes
    lost: Float[Array, " images"]
    attempts: Int[Array, " images"]


def started(states: Float[Array, " images *state"], slack, growth) -> Nodes:
    """One node for each image, at its own state."""
    images = len(states)
    empty = jnp.full((images, WIDTH), jnp.inf, states.dtype)
    zero = jnp.zeros((images, WIDTH), jnp.int32)
    width = (1, WIDTH, *(1,) * (states.ndim - 1))
    along = lambda x: jnp.broadcast_to(x[:, None], (images, WIDTH))  # noqa: E731
    return Nodes(
        jnp.tile(states[:, None], width),
        along(slack),
        along(growth),
        empty.at[:, 0].set(0),
        Rung(zero, zero),
        zero,
    )


def explore(solve: Solve, starts: Nodes, limit: Float[Array, " images"]) -> Explored:
    """The nodes at the end of a segment that inputs within `limit` can reach.

    **Arguments:** the segment; each image's nodes at its beginning; and the largest
    entry that is explored.
    """
    images = len(limit)
    lanes = min(LANES, images)
    size = starts.state[0, 0].size
    table = constants(*solve[1:5], size)
    again = jnp.zeros_like(starts.taken)
    starts = eqx.tree_at(
        lambda s: (s.rung, s.taken), starts, (Rung(again, again), again)
    )
    advance = jax.vmap(lambda pool, most: _advance(solve, table, pool, most))

    def going(carry):
        return jnp.any(carry[1] < images)

    def body(carry):
        pool, image, spent, upcoming, found = carry
        busy = image < images
        most = limit[jnp.minimum(image, images - 1)]
        pool, lost = advance(pool, most)
        spent = spent + busy.astype(spent.dtype)
        waiting = _waiting(pool, most[:, None], solve.ladder.whole)
        left = jnp.min(jnp.where(waiting, pool.entry, jnp.inf), axis=1)
        over = spent >= ATTEMPTS
        done = busy & (over | ~jnp.any(waiting, axis=1))
        lost = jnp.where(over, jnp.minimum(lost, left), lost)
        row = jnp.where(busy, image, images)
        ended = jnp.where(done, image, images)
        ends = jax.vmap(lambda p, m: _ended(p, m, solve.ladder.whole))(pool, most)
        found = Explored(
            jax.tree.map(
                lambda all_, new: all_.at[ended].set(new, mode="drop"), found.ends, ends
            ),
            found.lost.at[row].min(lost, mode="drop"),
            found.attempts.at[ended].set(spent, mode="drop"),
        )
        # Finished lanes load the next images.
        turn = upcoming + jnp.cumsum(done, dtype=jnp.int32) - 1
        image = jnp.where(done, jnp.minimum(turn, images), image)
        pool = _loaded(pool, starts, image, done & (image < images))
        upcoming = upcoming + jnp.sum(done, dtype=jnp.int32)
        return pool, image, jnp.where(done, 0, spent), upcoming, found

    first = jnp.arange(lanes, dtype=jnp.int32)
    pool = jax.tree.map(
        lambda x: jnp.zeros((lanes, SLOTS, *x.shape[2:]), x.dtype), starts
    )
    pool = eqx.tree_at(lambda p: p.entry, pool, jnp.full_like(pool.entry, jnp.inf))
    pool = _loaded(pool, starts, first, jnp.ones(lanes, bool))
    none = jnp.full(images, jnp.inf, limit.dtype)
    ends = eqx.tree_at(lambda n: n.entry, starts, jnp.full_like(starts.entry, jnp.inf))
    found = Explored(ends, none, jnp.zeros(images, jnp.int32))
    upcoming = jnp.asarray(lanes, jnp.int32)
    carry = (pool, first, jnp.zeros(lanes, jnp.int32), upcoming, found)
    return jax.lax.while_loop(going, body, carry)[-1]


def _loaded(pool: Nodes, starts: Nodes, image, fresh) -> Nodes:
    """The pool, with the starting nodes of the next images in the free lanes."""
    rows = jnp.minimum(image, len(starts.entry) - 1)

    def one(held, new):
        where = fresh.reshape(-1, *(1,) * (held.ndim - 1))
        front = jnp.where(where, new[rows], held[:, :WIDTH])
        return held.at[:, :WIDTH].set(front)

    empty = jnp.where(fresh[:, None], jnp.inf, pool.entry)
    return jax.tree.map(one, eqx.tree_at(lambda p: p.entry, pool, empty), starts)


def _waiting(pool: Nodes, limit, whole: int) -> Bool[Array, "*nodes"]:
    return (pool.entry < limit) & (pool.rung.position < whole)


def _ended(pool: Nodes, limit, whole: int) -> Nodes:
    """The nodes that have reached the end of the segment."""
    there = (pool.entry < limit) & (pool.rung.position == whole)
    slots = jnp.argsort(~there, stable=True)[:WIDTH]
    nodes = jax.tree.map(lambda x: x[slots], pool)
    entry = jnp.where(there[slots], nodes.entry, jnp.inf)
    return eqx.tree_at(lambda n: n.entry, nodes, entry)


def _advance(
    solve: Solve, table: Constants, pool: Nodes, limit: Float[Array, ""]
) -> tuple[Nodes, Float[Array, ""]]:
    """One attempt of the next node: that of the earliest time and then the longest
    step.

    In this order all nodes that may be merged with a node exist before its attempt.

    **Returns:** the nodes after the attempt, and the smallest entry that was dropped.
    """
    whole = solve.ladder.whole
    waiting = _waiting(pool, limit, whole)
    position = jnp.where(waiting, pool.rung.position, whole)
    earliest = waiting & (position == jnp.min(position))
    level = jnp.where(earliest, pool.rung.level, DEPTH + 1)
    slot = jnp.argmin(level)
    node = jax.tree.map(lambda x: x[slot], pool)
    # Without a next node nothing is reached.
    entry = jnp.where(jnp.any(waiting), node.entry, jnp.inf)
    taken = pool.entry.at[slot].set(jnp.where(jnp.any(waiting), jnp.inf, node.entry))
    pool = eqx.tree_at(lambda p: p.entry, pool, taken)
    node = eqx.tree_at(lambda n: n.entry, node, entry)
    lost = jnp.full_like(limit, jnp.inf)
    for child, fine in _children(solve, table, node):
        child = eqx.tree_at(
            lambda c: c.entry, child, jnp.where(fine, child.entry, jnp.inf)
        )
        given_up = jnp.where(fine, jnp.inf, child.entry)
        pool, without = _inserted(pool, child, limit)
        lost = jnp.minimum(lost, jnp.minimum(given_up, without))
    return pool, lost


def _children(solve: Solve, table: Constants, node: Nodes):
    """The nodes that an attempt can lead to, and whether each is within the limit."""
    ladder, rung = solve.ladder, node.rung
    level = jnp.clip(rung.level, 0, DEPTH)
    here = jax.tree.map(lambda x: x[level], table)
    y, (y1, scores, etas, noise) = node.state, _attempt(solve, here, node)

    def away(score, eta, constant):
        """The distance below which the score stays positive."""
        left = down(jnp.maximum(score - up(2 * eta), 0)) / constant
        left = down(jnp.maximum(down(left) - node.slack, 0)) / node.growth
        # Of a NaN nothing is known.
        return jnp.maximum(node.entry, jnp.where(left > 0, down(left), 0))

    kept = away(-scores[0], etas[0], here.accept)
    rejected = away(scores[0], etas[0], here.accept)
    longer, same = (
        jnp.maximum(kept, away(sign * scores[1], etas[1], here.double))
        for sign in (-1, 1)
    )
    may = ladder.may_double(rung) & (
        rung.position + ladder.ticks(rung.level) < ladder.whole
    )
    longer, same = jnp.where(may, longer, jnp.inf), jnp.where(may, same, kept)
    slack = up(up(here.growth * node.slack) + 2 * noise)
    growth = up(here.growth * node.growth)
    taken = node.taken + 1
    sound = jnp.all(jnp.isfinite(y1)) & jnp.isfinite(slack) & jnp.isfinite(growth)
    for entry, doubled in ((same, False), (longer, True)):
        after = ladder.onwards(rung, jnp.asarray(doubled))
        ended = after.position == ladder.whole
        after = Rung(after.position, jnp.where(ended, 0, after.level))
        goes_on = ended | (taken < solve.max_steps)
        child = Nodes(y1, slack, growth, entry, after, taken)
        yield child, sound & goes_on
    again = Nodes(y, node.slack, node.growth, rejected, ladder.shorter(rung), taken)
    yield again, (rung.level < DEPTH) & (taken < solve.max_steps)


def _attempt(solve: Solve, here: Constants, node: Nodes):
    r"""The next state, $G_1$ and $G_\theta$, their rounding, and that of the state."""
    ladder, y = solve.ladder, node.state
    a, b, c, e = (x.tolist() for x in embedded_pair(solve.method))
    begin, end = (
        ladder.time(position, *(jnp.asarray(t, y.dtype) for t in solve.times))
        for position in (
            node.rung.position,
            node.rung.position + ladder.ticks(node.rung.level),
        )
    )
    h, side = end - begin, RightHandSide(solve.field)
    inner, ks = [], []
    for i in range(len(b)):
        inner.append(y + combine(h, a[i][:i], ks, y))
        ks.append(side(stage_time(c[i], begin, end), inner[-1]))
    y1, error = y + combine(h, b, ks, y), combine(h, e, ks, y)
    scale, size = ladder.measure(y, y1, error)
    more = gamma(y.size + 8, y.dtype)
    norms = lambda x: up(jnp.sqrt(jnp.sum(x**2)) * (1 + more))  # noqa: E731
    sizes = Sizes(
        norms(y),
        norms(y1),
        [norms(x) for x in inner],
        [up(here.length * norms(k)) for k in ks],
        inner_size(solve.field, y.size).astype(y.dtype),
    )
    step = here.length, here.share, here.lipschitz
    noise = attempt_noise(solve.method, step, sizes, y.size)
    rtol = jnp.asarray(ladder.rtol, y.dtype)
    scores, etas = [], []
    for theta in (1.0, ladder.theta(solve.method.order(None))):
        scores.append(theta * scale - size)
        eta = theta * (rtol * noise.after + noise.scale * scale)
        etas.append(up(eta + noise.error + noise.scale * (size + noise.error)))
    return y1, scores, etas, noise.after


def _inserted(pool: Nodes, child: Nodes, limit) -> tuple[Nodes, Float[Array, ""]]:
    """The pool with one more node, merged with another one if there is no free slot.

    **Returns:** the pool, and the child's entry if it had to be dropped.
    """
    wanted, held = child.entry < limit, pool.entry < jnp.inf
    same = held & (pool.rung.position == child.rung.position)
    same = same & (pool.rung.level == child.rung.level)
    free = jnp.argmin(held)
    room = ~held[free]
    add = wanted & room & (jnp.sum(same) < WIDTH)
    merge = wanted & ~add & jnp.any(same)
    near = jnp.argsort(~same, stable=True)[:WIDTH]
    others = jax.tree.map(lambda x: x[near], pool)
    apart = jax.vmap(lambda y: distance(y, child.state))(others.state)
    radius = (apart + others.slack + child.slack) / 2
    radius = jnp.maximum(radius, jnp.maximum(others.slack, child.slack))
    best = jnp.argmin(jnp.where(same[near], radius, jnp.inf))
    merged = merge_balls(jax.tree.map(lambda x: x[best], others), child)
    new = jax.tree.map(lambda a, b: jnp.where(merge, a, b), merged, child)
    slot = jnp.where(merge, near[best], jnp.where(add, free, len(pool.entry)))
    pool = jax.tree.map(lambda x, y: x.at[slot].set(y, mode="drop"), pool, new)
    return pool, jnp.where(wanted & ~add & ~merge, child.entry, jnp.inf)


def distance(y: Float[Array, "*state"], z: Float[Array, "*state"]) -> Float[Array, ""]:
    """The L2 distance of two states, rounded up."""
    return up(jnp.sqrt(jnp.sum((y - z) ** 2)) * (1 + gamma(y.size + 8, y.dtype)))


def merge_balls(one: Nodes, other: Nodes) -> Nodes:
    """The smallest ball that contains two, up to rounding, with the weaker bounds of
    both."""
    apart = distance(one.state, other.state)
    share = (apart + other.slack - one.slack) / jnp.maximum(2 * apart, 1e-30)
    share = jnp.clip(share, 0, 1)
    state = one.state + share * (other.state - one.state)
    slack = [up(distance(state, x.state) + x.slack) for x in (one, other)]
    return Nodes(
        state,
        jnp.maximum(*slack),
        jnp.maximum(one.growth, other.growth),
        jnp.minimum(one.entry, other.entry),
        one.rung,
        jnp.maximum(one.taken, other.taken),
    )
