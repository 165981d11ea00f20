r"""How much an attempted step and its decisions can change with the state.

The step-size decision of an attempt is the sign of $G_\theta = \theta s - \|e\|$ (see
`jnode.solvers.LadderController`), which is Lipschitz in the state that the attempt
starts from. Rounding is part of it: every number here bounds the map *as computed*, if
an evaluation of the field errs by at most `evaluation(dtype)` times $L\|Y\| + \|f(Y)\|
+ \beta$ with $\beta$ the size of the biases. That is stated and not proven, as in
`jnode.certify.radius`; the rounding of all that is computed from the evaluations is
bounded by Higham's $\gamma_n$.
"""

import functools
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jnode.bounds import Bounds, down, gamma, unit_roundoff, up
from jnode.certify.amplification import step_amplification
from jnode.solvers.ladder import DEPTH, LadderController
from jnode.solvers.tableaus import embedded_pair


def evaluation(dtype: Any) -> float:
    """The allowed error of an evaluation of a field, relative to the size of its terms:
    1e-5 in float32."""
    return 168 * unit_roundoff(dtype)


class Sizes(NamedTuple):
    r"""The sizes to which rounding in an attempt is relative, or their Lipschitz
    constants in the state: of $y$, $y^+$, the stages' $Y_i$ and $h k_i$, and the
    biases."""

    before: Float[Array, "*levels"]
    after: Float[Array, "*levels"]
    inner: list[Float[Array, "*levels"]]
    stages: list[Float[Array, "*levels"]]
    biases: Float[Array, ""]


class Noise(NamedTuple):
    """Bounds on the rounding errors of $y^+$, $s$ and $e$ in an attempt."""

    after: Float[Array, "*levels"]
    scale: Float[Array, "*levels"]
    error: Float[Array, "*levels"]


class Constants(NamedTuple):
    r"""Lipschitz constants of an attempt with respect to the state, for each level.

    - `length`: the step, rounded up; `share`: the allowed error of a stage relative to
        its terms; `lipschitz`: that of the field.
    - `growth`: of $\|\Delta y^+\|$.
    - `accept`, `double`: of $|\Delta G_1|$ and $|\Delta G_\theta|$.
    """

    length: Float[Array, "*levels"]
    share: Float[Array, "*levels"]
    lipschitz: Float[Array, "*levels"]
    growth: Float[Array, "*levels"]
    accept: Float[Array, "*levels"]
    double: Float[Array, "*levels"]


def constants(
    bounds: Bounds,
    method: diffrax.AbstractERK,
    ladder: LadderController,
    times: tuple[float, float],
    size: int,
) -> Constants:
    """The constants of every level, for a state with `size` entries.

    **Arguments:** the field's bounds, the method, the controller, and the interval.
    """
    dtype = bounds.lipschitz.dtype
    t0, t1 = times
    h = (t1 - t0) / ladder.count * 0.5 ** np.arange(DEPTH + 1)
    # A step is the difference of two rounded times.
    error = 0.0
    if not _are_exact(t0, t1, ladder, dtype):
        error = 8 * unit_roundoff(dtype) * (abs(t0) + abs(t1))
    longest = up(jnp.asarray(h + error, dtype))
    shortest = down(jnp.asarray(np.maximum(h - error, 0), dtype))
    share = up(jnp.asarray(evaluation(dtype) + error / h, dtype))

    def one(longest, shortest, share):
        return _constants(bounds, method, ladder, longest, shortest, share, size)

    return jax.vmap(one)(longest, shortest, share)


def _are_exact(t0, t1, ladder, dtype) -> bool:
    """Whether this dtype represents every time of a ladder exactly."""
    unit = (t1 - t0) / ladder.whole
    places = abs(t0) / unit, abs(t1) / unit
    return (
        float(np.frexp(unit)[0]) == 0.5  # a power of two
        and all(place.is_integer() for place in places)
        and max(places) * unit_roundoff(dtype) <= 1
    )


def _constants(bounds, method, ladder, h, shortest, share, size) -> Constants:
    grown = step_amplification(method, h, bounds, shortest=shortest)
    inner, stages, error = _stage_constants(method, h, shortest, bounds, grown)
    one, zero = jnp.ones_like(grown), jnp.zeros_like(grown)
    largest = jnp.maximum(one, grown)
    # Within a ball the rounding error grows with the states.
    sizes = Sizes(one, largest, inner, stages, zero)
    noise = attempt_noise(method, (h, share, bounds.lipschitz), sizes, size)
    rtol = jnp.asarray(ladder.rtol, grown.dtype)
    scale = up(rtol * (largest + noise.after + noise.scale * largest))
    error = up(error + noise.error + gamma(size + 8, grown.dtype) * error)
    growth = up(grown + noise.after)
    theta = ladder.theta(method.order(None))
    double = up(error + theta * scale)
    accept = up(error + scale)
    return Constants(h, share, bounds.lipschitz, growth, accept, double)


def attempt_noise(
    method: diffrax.AbstractERK,
    step: tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]],
    sizes: Sizes,
    size: int,
) -> Noise:
    """Bounds on the rounding errors of an attempt; linear in the sizes.

    **Arguments:** the method; the step's `length`, `share` and `lipschitz` (see
    `Constants`); the sizes; and the number of entries of a state. **Returns:** the
    noise; that of $s$ is relative, and comes from its norms alone.
    """
    a, b, _, e = (x.tolist() for x in embedded_pair(method))
    (h, share, lipschitz), dtype = step, sizes.before.dtype
    sums = gamma(len(b) + 4, dtype)
    biases = h * jnp.maximum(lipschitz, 1) * sizes.biases
    errors = []  # of each h k_i
    for i in range(len(b)):
        moved = _weighted(a[i][:i], errors, jnp.zeros_like(sizes.before))
        fresh = share * (h * lipschitz * sizes.inner[i] + sizes.stages[i] + biases)
        errors.append(up(h * lipschitz * moved + fresh))
    zero = jnp.zeros_like(sizes.before)
    terms = sizes.before + _weighted(b, sizes.stages, zero)
    after = _weighted(b, errors, zero) + sums * terms
    error = _weighted(e, errors, zero) + sums * _weighted(e, sizes.stages, zero)
    norms = gamma(size + 8, dtype)  # more than half of it would do, for a root
    return Noise(up(after), norms * jnp.ones_like(zero), up(error))


def _weighted(weights, values, start) -> Array:
    """The sum of values times the sizes of their weights."""
    pairs = [(abs(w), v) for w, v in zip(weights, values, strict=True) if w != 0]
    return sum((w * v for w, v in pairs), start=jnp.asarray(start))


def _stage_constants(method, h, shortest, bounds, grown):
    r"""Lipschitz constants of the $Y_i$, the $h k_i$ and the error estimate.

    Of a $c$-cocoercive field, $\Delta k = -\lambda\Delta Y + R$ with $\lambda = 1/2c$
    and $\|R\| \le \lambda\|\Delta Y\|$. Put into sums of stages whose weights cancel,
    the first part leaves little: $\sum e_i = 0$, so $\|h\sum e_i\Delta k_i\| \le
    h\lambda(\sum_j |\sum_i e_i a_{ij}|\,\ell_j + \sum_i |e_i|\,n_i)$.
    """
    a, b, _, e = embedded_pair(method)
    hl = h * bounds.lipschitz
    c, one = bounds.cocoercivity, jnp.ones_like(hl)
    pull = jnp.where(c > 0, h / (2 * jnp.where(c > 0, c, 1)), 0)
    inner, stages = [], []

    def cancelled(weights, start):
        """The constant of `start` plus a weighted sum of stages, by cocoercivity."""
        through = np.abs(weights @ a[: len(weights), : len(weights)]).tolist()
        parts = _weighted(through, stages, _weighted(weights.tolist(), inner, 0 * one))
        found = up(up(start) + pull * parts)
        return jnp.where(c > 0, found, jnp.inf)

    for i in range(len(b)):
        weights, ahead = a[i, :i], float(np.sum(a[i, :i]))
        candidates = [up(_weighted(weights.tolist(), stages, one))]
        if i and _is_step(a, b, i):
            candidates.append(grown)
        elif ahead > 0:
            ends = up(ahead * h), down(ahead * shortest)
            part = _part(a, i, ahead)
            candidates.append(
                step_amplification(part, ends[0], bounds, shortest=ends[1])
            )
        left = pull * ahead
        rest = jnp.abs(1 - left) + 8 * unit_roundoff(hl.dtype) * (1 + jnp.abs(left))
        candidates.append(cancelled(weights, rest))
        inner.append(functools.reduce(jnp.minimum, candidates))
        stages.append(up(hl * inner[-1]))
    error = up(_weighted(e.tolist(), stages, jnp.zeros_like(hl)))
    return inner, stages, jnp.minimum(error, cancelled(e, 0 * one))


def _is_step(a, b, i) -> bool:
    """Whether a stage starts from the next state (first-same-as-last)."""
    return i == len(b) - 1 and float(b[-1]) == 0 and np.array_equal(a[i], b)


def _part(a, i, ahead) -> diffrax.ButcherTableau | diffrax.Euler:
    """The method whose step of length `ahead` times h gives the state of stage `i`."""
    scaled, b = a[:i, :i] / ahead, a[i, :i] / ahead
    # Trailing zero weights are dropped.
    last = int(np.flatnonzero(b)[-1]) + 1
    if last == 1:
        return diffrax.Euler()
    lower = tuple(scaled[j, :j] for j in range(1, last))
    times = np.array([np.sum(row) for row in lower])
    return diffrax.ButcherTableau(
        a_lower=lower, b_sol=b[:last], b_error=np.zeros(last), c=times
    )
