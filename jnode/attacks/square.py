"""The Square Attack: random search without gradients (Andriushchenko et al., 2020)."""

from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from jnode.attacks.base import AbstractAttack, count_field
from jnode.attacks.norms import wide

# The fraction of pixels that a square covers is halved after these queries of 10,000;
# for other numbers in proportion.
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def shares(queries: int, first: float = 0.8) -> Float[np.ndarray, " queries"]:
    """The fraction of the image's positions that each query's square covers."""
    query = np.arange(queries) * 10_000 // queries
    halvings = np.searchsorted(HALVED_AFTER, query, side="left")
    return first / 2.0**halvings


class Square(AbstractAttack):
    r"""Black-box random search by squares of the largest change.

    It uses logits only, so masked gradients do not mislead it. A change is kept if it
    helps. In Linf it starts from vertical stripes of $\pm\epsilon$ and sets squares to
    $\pm\epsilon$, with a sign for each channel. In L2 it starts from a grid of
    perturbations, each two pyramids of opposite sign; then it takes the norm of one
    random window, and what is left of the budget, and adds such a perturbation of this
    norm in another window. In L1 it does the same with steeper pyramids (Croce & Hein,
    ICML 2021). Squares shrink as queries are spent. `steps` is the number
    of queries. The attack stops when it has succeeded on the whole batch.
    """

    name: ClassVar[str] = "square"
    steps: int = count_field("steps", 5000)

    def search(self, model, images, goal, clean, budget, *, key):
        start, propose = {
            "linf": (_stripes, _linf_square),
            "l2": (partial(_grid, p=2), partial(_windows, p=2)),
            "l1": (partial(_grid, p=1), partial(_windows, p=1)),
        }[budget.norm]
        epsilon = wide(budget.epsilon)
        height, width = images.shape[1:3]
        positions = height * width * shares(self.steps)
        sides = np.maximum(np.round(np.sqrt(positions)), 1).astype(int)
        sides = jnp.asarray(np.minimum(sides, min(height, width) - 1).clip(1))

        def value(logits):
            # If logits are not finite, the margin is meaningless.
            return jnp.where(goal.reached(logits), -jnp.inf, goal.margin(logits))

        def keep(x, best, candidate):
            found = value(model(candidate))
            # Accepting equal values lets the search leave a plateau.
            better = (found <= best) & (best >= 0)
            x = jnp.where(wide(better), candidate, x)
            return x, jnp.where(better, found, best)

        def query(carry):
            i, x, best, key = carry
            key, this = jr.split(key)
            candidate = images + propose(x - images, sides[i], epsilon, this)
            candidate = budget.project(candidate, images)
            x, best = keep(x, best, candidate)
            return i + 1, x, best, key

        def going(carry):
            i, _, best, _ = carry
            return (i < self.steps) & jnp.any(best >= 0)

        def restart(carry, key):
            x, best = carry
            key, this = jr.split(key)
            begin = budget.project(images + start(images, epsilon, this), images)
            left = best >= 0
            at = jnp.where(wide(left), begin, x)
            now = jnp.where(left, value(model(begin)), best)
            first = (jnp.zeros((), jnp.int32), at, now, key)
            _, x, best, _ = jax.lax.while_loop(going, query, first)
            return (x, best), None

        first = (images, value(clean))
        (found, best), _ = jax.lax.scan(restart, first, jr.split(key, self.restarts))
        return jnp.where(wide(best < 0), found, images)


def _signs(key, shape, dtype):
    return jr.rademacher(key, shape, dtype=dtype)


def _stripes(images, epsilon, key):
    n, _, width, channels = images.shape
    stripes = _signs(key, (n, 1, width, channels), images.dtype)
    return epsilon * jnp.broadcast_to(stripes, images.shape)


def _window(shape, corner, side):
    """A mask for each sample: 1 on the square at this corner, 0 elsewhere."""
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
    signs = _signs(keys[1], (delta.shape[0], 1, 1, delta.shape[3]), delta.dtype)
    return jnp.where(inside, epsilon * signs, delta)


def _eta(shape, corner, side, key, dtype, p):
    r"""The perturbation $\pm\eta$ of each sample's window, 0 elsewhere.

    The window of side $h$ is cut across into rectangles of $\lfloor h/2\rfloor$ and
    $h - \lfloor h/2\rfloor$ rows, and turned by a right angle half of the time. Each
    holds a pyramid around its own middle $(r_0, s_0)$, its sides halved and rounded
    down: with $n = \lfloor h/2\rfloor$ and
    $M_{rs} = n - \max(|r - r_0|, |s - s_0|)$ the heights are

    $$\sum_{k=0}^{M_{rs}} \frac{1}{(n + 1 - k)^{4/p}},$$

    a sharp peak, divided by the Lp norm of the rectangle's, the second with the
    opposite sign. The whole has norm 1 in each channel, and there a random sign.
    """
    keys = jr.split(key, 2)
    down, across = (
        jnp.arange(length)[None] - first[:, None]
        for length, first in zip(shape[1:3], corner, strict=True)
    )
    inside = ((down >= 0) & (down < side))[:, :, None]
    inside &= ((across >= 0) & (across < side))[:, None, :]
    turned = jr.bernoulli(keys[0], 0.5, (shape[0], 1, 1))
    row = jnp.where(turned, across[:, None, :], down[:, :, None])
    column = jnp.where(turned, down[:, :, None], across[:, None, :])
    n = side // 2
    upper = row < n
    middle = jnp.where(upper, n // 2, n + (side - n) // 2)
    ring = jnp.maximum(jnp.abs(row - middle), jnp.abs(column - n))
    # With k' = n - k the sum runs over 1 / (1 + k')^(4/p) from the ring to n, the edge.
    k = jnp.arange(max(shape[1:3]) // 2 + 1)
    terms = jnp.where(k <= n, 1 / (1 + k).astype(dtype) ** (4 // p), 0)
    heights = jnp.cumsum(terms[::-1])[::-1]
    height = heights[jnp.clip(ring, 0, len(heights) - 1)]
    halves = [jnp.where(inside & half, height, 0) for half in (upper, ~upper)]
    first, second = (half / _channel_norm(half, p) for half in halves)
    eta = first - second
    eta = (eta / _channel_norm(eta, p))[..., None]
    return eta * _signs(keys[1], (shape[0], 1, 1, shape[3]), dtype)


def _mass(x, p, axis=(1, 2)):
    """The sum of |x|^p, by default over height and width."""
    return jnp.sum(jnp.abs(x) ** p, axis=axis, keepdims=True)


def _channel_norm(x, p):
    """The Lp norm over height and width, kept above 0 as it is a divisor."""
    return jnp.maximum(_mass(x, p), 1e-24) ** (1 / p)


def _unit(x, p):
    """Each sample scaled to the Lp norm 1."""
    return x / jnp.maximum(_mass(x, p, (1, 2, 3)), 1e-24) ** (1 / p)


def _grid(images, epsilon, key, p):
    """A grid of about five by five perturbations, scaled to the whole budget."""
    shape, dtype = images.shape, images.dtype
    side = max(min(shape[1:3]) // 5, 1)
    rows, columns = (
        np.arange(length // side) * side + length % side // 2 for length in shape[1:3]
    )
    corners = np.stack(np.meshgrid(rows, columns), axis=-1).reshape(-1, 2)

    def add(total, this):
        corner, key = this
        corner = [jnp.full(shape[0], first) for first in corner]
        return total + _eta(shape, corner, side, key, dtype, p), None

    each = (jnp.asarray(corners), jr.split(key, len(corners)))
    total, _ = jax.lax.scan(add, jnp.zeros(shape, dtype), each)
    return epsilon * _unit(total, p)


def _windows(delta, side, epsilon, key, p):
    # Odd and at least 3, so that a window has a middle, if the image is large enough.
    side = jnp.maximum(side, 3) // 2 * 2 + 1
    side = jnp.minimum(side, (min(delta.shape[1:3]) - 1) // 2 * 2 + 1)
    keys = jr.split(key, 3)
    shape = delta.shape
    here, there = (_corner(shape, side, k) for k in keys[:2])
    inside = _window(shape, here, side)
    either = inside | _window(shape, there, side)
    # The norm in both windows of each channel, plus its part of the remaining budget.
    left = jnp.maximum(epsilon**p - _mass(delta, p, (1, 2, 3)), 0) / shape[3]
    held = _mass(jnp.where(either, delta, 0), p)
    old = jnp.where(inside, delta, 0)
    new = _eta(shape, here, side, keys[2], delta.dtype, p) + old / _channel_norm(old, p)
    new = (held + left) ** (1 / p) * new / _channel_norm(new, p)
    return epsilon * _unit(jnp.where(either, 0, delta) + new, p)
