r"""Adaptive steps from a ladder of halves, which can be certified.

Diffrax's controllers multiply a step by a factor that depends continuously on the
error, so that every input has its own times. Here steps are dyadic parts of the
interval, and the input only decides which of countably many grids is taken. So few of
them can be reached from a ball of inputs that each one can be examined
(`jnode.certify.paths`).
"""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

DEPTH = 16
"""How many times a step can be halved."""
MOST = 256
"""The most first steps in an interval such that float32 represents every time."""
SPARE = 0.8
"""A step grows if twice its length would use at most this share of the tolerance."""


class Rung(NamedTuple):
    """The state of the ladder: where the next step starts, and how long it is.

    - `position`: in units of the shortest step, $2^{-16}$ of a first step.
    - `level`: the number of times that the first step was halved.
    """

    position: Int[Array, "*batch"]
    level: Int[Array, "*batch"]


class LadderController(diffrax.AbstractStepSizeController):
    r"""A step size controller whose steps are halved and doubled by the sign of a
    function.

    The first step is a fixed fraction of the interval, and no step is longer. A step
    from $y$ to $y^+$ with the error estimate $e$ is accepted where $G_1 \ge 0$, with

    $G_\theta = \theta\,(\mathrm{atol}\sqrt n + \mathrm{rtol}\max(\|y\|, \|y^+\|)) -
    \|e\|$

    for a state of $n$ numbers, and otherwise repeated with half its length. After an
    accepted step the next one is twice as long if $G_\theta \ge 0$ for $\theta =
    0.8/2^p$, $p$ the order of the estimate, and if a step of that length may start
    there: a step must start at a multiple of its own length. So the steps always fill
    the interval, none is cut short at its end, and times are integers.

    Use it as the `stepsize_controller` of `diffrax.diffeqsolve`, with `dt0=None`, or of
    `jnode.solve`; a `jnode.Solver` with `controller="ladder"` contains one.
    """

    rtol: float | Float[Array, ""]
    atol: float | Float[Array, ""]
    count: int = eqx.field(static=True)
    doubles: bool = eqx.field(static=True)

    def __init__(
        self,
        rtol: float | Float[Array, ""],
        atol: float | Float[Array, ""],
        first_step: float = 1.0,
        doubles: bool = True,
    ):
        r"""**Arguments:**

        - `rtol`, `atol`: the relative and absolute tolerance.
        - `first_step`: the first step and the longest, as a share $1/m$ of the
            interval, $1 \le m \le 256$.
        - `doubles`: whether steps can grow again. If not, each step is as long as the
            one before or half as long, and there are fewer grids.

        **Raises:** `ValueError` for another first step.
        """
        self.rtol, self.atol, self.doubles = rtol, atol, doubles
        self.count = first_steps(first_step)

    @property
    def whole(self) -> int:
        """The last position: the end of the interval."""
        return self.count << DEPTH

    def theta(self, order: Any) -> float:
        r"""$\theta$ of the decision to double, for an estimate of this order."""
        return SPARE / 2.0 ** float(order)

    def measure(
        self, y0: PyTree[Array], y1: PyTree[Array], error: PyTree[Array]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        r"""The two sides of a decision: $\mathrm{atol}\sqrt n +
        \mathrm{rtol}\max(\|y\|, \|y^+\|)$, and $\|e\|$."""
        sizes = [_norm(tree) for tree in (y0, y1, error)]
        root = sum(leaf.size for leaf in jax.tree.leaves(error)) ** 0.5
        largest = jnp.maximum(*sizes[:2])
        rtol, atol = (jnp.asarray(x, largest.dtype) for x in (self.rtol, self.atol))
        return atol * root + rtol * largest, sizes[2]

    def ticks(self, level: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
        """The length of a step of this level, in units of `position`."""
        return jnp.asarray(1 << DEPTH, level.dtype) >> level

    def time(
        self, position: Int[Array, "*batch"], t0: Float[Any, ""], t1: Float[Any, ""]
    ) -> Float[Array, "*batch"]:
        """The time of a position. As in Diffrax, its gradient is that of `t0`, and at
        the end that of `t1`."""
        t0, t1 = jnp.asarray(t0), jnp.asarray(t1)
        share = position.astype(t0.dtype) / self.whole
        inside = t0 + jax.lax.stop_gradient(t1 - t0) * share
        return jnp.where(position == self.whole, t1, inside)

    def may_double(self, rung: Rung) -> Any:
        """Whether a step of twice the length may start at the end of this one."""
        after = rung.position + self.ticks(rung.level)
        longer = 2 * self.ticks(rung.level)
        return self.doubles & (rung.level > 0) & (after % longer == 0)

    def shorter(self, rung: Rung) -> Rung:
        """The state after a step was rejected."""
        return Rung(rung.position, jnp.minimum(rung.level + 1, DEPTH))

    def onwards(self, rung: Rung, longer: Any) -> Rung:
        """The state after a step was accepted, with the next one doubled if
        `longer`."""
        position = rung.position + self.ticks(rung.level)
        longer = longer & self.may_double(rung)
        return Rung(position, rung.level - longer.astype(rung.level.dtype))

    def wrap(self, direction: Any) -> "LadderController":
        del direction  # fractions of the interval do not depend on it
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        """The end of the first step, and the state (see `AbstractStepSizeController`).

        **Raises:** `ValueError` for a `dt0`.
        """
        del terms, y0, args, func, error_order
        if dt0 is not None:
            raise ValueError(
                f"dt0 must be None beside a LadderController, whose first step is "
                f"1/{self.count} of the interval (first_step); it is {dt0}."
            )
        zero = jnp.zeros((), jnp.int32)
        rung = Rung(zero, zero)
        return self.time(self.ticks(zero), t0, t1), (rung, t0, t1)

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        """Accepts or rejects a step (see `AbstractStepSizeController`).

        **Raises:** `ValueError` for a solver without an error estimate.
        """
        del args
        if y_error is None:
            raise ValueError(
                "solver must estimate its error for a LadderController to choose its "
                "steps; this one does not."
            )
        rung, begin, end = controller_state
        scale, size = self.measure(y0, y1_candidate, y_error)
        keep = scale - size >= 0
        longer = self.theta(error_order) * scale - size >= 0
        after = jax.tree.map(
            lambda a, b: jnp.where(keep, a, b),
            self.onwards(rung, longer),
            self.shorter(rung),
        )
        results = diffrax.RESULTS
        least = ~keep & (rung.level == DEPTH)
        result = results.where(least, results.dt_min_reached, results.successful)
        start = jnp.where(keep, t1, t0)
        ahead = jnp.minimum(after.position + self.ticks(after.level), self.whole)
        ahead = self.time(ahead, begin, end)
        return keep, start, ahead, False, (after, begin, end), result


def first_steps(first_step: float) -> int:
    """How many first steps fill the interval.

    **Raises:** `ValueError` for a fraction other than 1/m with m from 1 to 256.
    """
    count = round(1 / first_step) if 0 < first_step <= 1 else 0
    if not 1 <= count <= MOST or abs(count * first_step - 1) > 1e-9:
        raise ValueError(
            f"first_step must be a share 1/m of the interval, m an integer from 1 to "
            f"{MOST}, as 1, 0.5 and 0.25 are; it is {first_step!r}."
        )
    return count


def _norm(tree: PyTree[Array]) -> Float[Array, ""]:
    squares = [jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares[1:], squares[0]))
