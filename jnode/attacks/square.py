"""The Square Attack: random search without gradients (Andriushchenko et al., 2020)."""

from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.attacks.base import (
    AbstractAttack,
    Classifier,
    Images,
    Labels,
    Logits,
    check_budget,
    wide,
)
from jnode.attacks.norms import project, size
from jnode.attacks.targets import one_by_one

# Shares of the pixels that a square covers, halved after so many of 10,000 queries;
# of fewer or more in proportion.
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def shares(queries: int, first: float = 0.8) -> Float[np.ndarray, " queries"]:
    """What share of the image's positions the square of each query covers."""
    query = np.arange(queries) * 10_000 // queries
    halvings = np.searchsorted(HALVED_AFTER, query, side="left")
    return first / 2.0**halvings


def margin(logits: Logits, labels: Labels) -> Float[Array, " batch"]:
    r"""$z_y - \max_{i \ne y} z_i$, below 0 where the image is misclassified."""
    true = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    others = jnp.arange(logits.shape[1])[None] == labels[:, None]
    return true - jnp.max(jnp.where(others, -jnp.inf, logits), axis=1)


class Square(AbstractAttack):
    r"""Black-box random search: squares of the largest change, kept where they help.

    It asks for logits alone, so no masked gradient misleads it. Linf: starts from
    vertical stripes of $\pm\epsilon$ and sets squares to $\pm\epsilon$, each channel
    by itself. L2: starts from a grid of bumps and moves the mass of one window to
    another. Squares shrink as queries are spent. `steps` is the number of queries.
    Stops when no sample stands.
    """

    name: ClassVar[str] = "square"
    epsilon: Float[Array, ""]
    norm: str = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    restarts: int = eqx.field(static=True)

    def __init__(
        self,
        epsilon: float,
        *,
        norm: str = "linf",
        steps: int = 5000,
        restarts: int = 1,
    ):
        """**Arguments:** the budget in pixel units, its norm ("linf" or "l2"), the
        number of queries, and of restarts."""
        self.epsilon = check_budget(epsilon, norm, steps=steps, restarts=restarts)
        self.norm, self.steps, self.restarts = norm, steps, restarts

    def evaluations(self) -> tuple[int, int]:
        return 2 + self.restarts * (self.steps + 1), 0

    def parts(self) -> Sequence["Square"]:
        return one_by_one(self)

    def search(
        self,
        model: Classifier,
        images: Images,
        labels: Labels,
        clean: Logits,
        *,
        key: PRNGKeyArray,
    ) -> Images:
        start, propose = (
            (_stripes, _linf_square) if self.norm == "linf" else (_bumps, _l2_windows)
        )
        height, width = images.shape[1:3]
        positions = height * width * shares(self.steps)
        sides = np.maximum(np.round(np.sqrt(positions)), 1).astype(int)
        sides = jnp.asarray(np.minimum(sides, min(height, width) - 1).clip(1))

        def value(x):
            found = margin(model(x), labels)
            # What is not finite is no success.
            return jnp.where(jnp.isfinite(found), found, jnp.inf)

        def keep(x, best, candidate):
            found = value(candidate)
            # A move along a plateau is free, and may lead off it.
            better = (found <= best) & (best >= 0)
            x = jnp.where(wide(better), candidate, x)
            return x, jnp.where(better, found, best)

        def query(carry):
            i, x, best, key = carry
            key, this = jr.split(key)
            candidate = propose(x - images, sides[i], self.epsilon, this)
            candidate = project(images + candidate, images, self.epsilon, self.norm)
            x, best = keep(x, best, candidate)
            return i + 1, x, best, key

        def going(carry):
            i, _, best, _ = carry
            return (i < self.steps) & jnp.any(best >= 0)

        def restart(carry, key):
            x, best = carry
            key, this = jr.split(key)
            begin = start(images, self.epsilon, this)
            begin = project(images + begin, images, self.epsilon, self.norm)
            standing = best >= 0
            at = jnp.where(wide(standing), begin, x)
            now = jnp.where(standing, value(begin), best)
            first = (jnp.zeros((), int), at, now, key)
            _, x, best, _ = jax.lax.while_loop(going, query, first)
            return (x, best), None

        first = (images, value(images))
        (found, best), _ = jax.lax.scan(restart, first, jr.split(key, self.restarts))
        return jnp.where(wide(best < 0), found, images)


def _signs(key, shape):
    return jr.rademacher(key, shape, dtype=jnp.float32)


def _stripes(images, epsilon, key):
    n, _, width, channels = images.shape
    stripes = _signs(key, (n, 1, width, channels))
    return epsilon * jnp.broadcast_to(stripes, images.shape)


def _window(shape, corner, side):
    """1 on the square of each sample with this corner, 0 elsewhere."""
    rows, columns = (jnp.arange(length)[None] for length in shape[1:3])
    in_rows = (rows >= corner[0][:, None]) & (rows < corner[0][:, None] + side)
    in_columns = (columns >= corner[1][:, None]) & (columns < corner[1][:, None] + side)
    return (in_rows[:, :, None] & in_columns[:, None, :])[..., None]


def _corner(shape, side, key):
    keys = jr.split(key, 2)
    return [
        jr.randint(k, (shape[0],), 0, length - side + 1)
        for k, length in zip(keys, shape[1:3], strict=True)
    ]


def _linf_square(delta, side, epsilon, key):
    keys = jr.split(key, 2)
    inside = _window(delta.shape, _corner(delta.shape, side, keys[0]), side)
    signs = _signs(keys[1], (delta.shape[0], 1, 1, delta.shape[3]))
    return jnp.where(inside, epsilon * signs, delta)


def _bump(shape, corner, side, key):
    r"""A pyramid of each sample's window, one half of it with the sign turned.

    Of norm 1 in each channel: large in the middle and small at the edge, as the filters
    of a convolution answer to it most.
    """
    keys = jr.split(key, 2)
    half = jnp.asarray(side - 1, jnp.float32) / 2
    dy, dx = (
        (jnp.arange(length)[None] - first[:, None]).astype(jnp.float32) - half
        for length, first in zip(shape[1:3], corner, strict=True)
    )
    ring = jnp.maximum(jnp.abs(dy)[:, :, None], jnp.abs(dx)[:, None, :])
    inside = ring <= half
    # The sum of 1 / k^2 over the rings from the edge inwards.
    steps = jnp.arange(1, max(shape[1:3]) + 1).astype(jnp.float32)
    heights = jnp.cumsum(1 / steps**2)
    depth = jnp.clip((half - ring).astype(int), 0, len(heights) - 1)
    pyramid = jnp.where(inside, heights[depth], 0)
    across = jr.bernoulli(keys[0], 0.5, (shape[0], 1, 1))
    turned = jnp.where(across, dy[:, :, None] > 0, (dx > 0)[:, None, :])
    pyramid = jnp.where(turned, -pyramid, pyramid)
    pyramid = pyramid / jnp.sqrt(
        jnp.maximum(jnp.sum(pyramid**2, axis=(1, 2), keepdims=True), 1e-12)
    )
    return pyramid[..., None] * _signs(keys[1], (shape[0], 1, 1, shape[3]))


def _bumps(images, epsilon, key):
    """A grid of bumps, scaled to the whole budget."""
    shape = images.shape
    side = max(min(shape[1:3]) // 5, 1)
    rows = np.arange(0, shape[1] - side + 1, side)
    columns = np.arange(0, shape[2] - side + 1, side)
    corners = np.stack(np.meshgrid(rows, columns), axis=-1).reshape(-1, 2)

    def add(total, this):
        corner, key = this
        corner = [jnp.full(shape[0], first) for first in corner]
        return total + _bump(shape, corner, side, key), None

    each = (jnp.asarray(corners), jr.split(key, len(corners)))
    total, _ = jax.lax.scan(add, jnp.zeros(shape), each)
    return epsilon * total / wide(jnp.maximum(size(total, "l2"), 1e-12))


def _l2_windows(delta, side, epsilon, key):
    # Odd and at least 3, so that a bump has a middle.
    side = jnp.maximum(side, 3) // 2 * 2 + 1
    side = jnp.minimum(side, (min(delta.shape[1:3]) - 1) // 2 * 2 + 1)
    keys = jr.split(key, 4)
    shape = delta.shape
    here, there = (_corner(shape, side, k) for k in keys[:2])
    taken = _window(shape, there, side)
    inside = _window(shape, here, side)
    either = inside | taken
    squares = lambda x: jnp.sum(x**2, axis=(1, 2), keepdims=True)  # noqa: E731
    # What the budget leaves, and what both windows give up, a channel's share each.
    spent = jnp.sum(delta**2, axis=(1, 2, 3), keepdims=True)
    left = jnp.maximum(epsilon**2 - spent, 0) / shape[3]
    mass = jnp.sqrt(squares(jnp.where(either, delta, 0)) + left)
    old = jnp.where(inside, delta, 0)
    old = old / jnp.sqrt(jnp.maximum(squares(old), 1e-12))
    new = _bump(shape, here, side, keys[2]) + old
    new = new / jnp.sqrt(jnp.maximum(squares(new), 1e-12))
    return jnp.where(either, 0, delta) + mass * new
