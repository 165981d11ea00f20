"""What a solve returns."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

RESULTS = diffrax.RESULTS


class Solution(eqx.Module):
    """The end of a solve, and what was saved on the way.

    - `y`: the state at `t1`, or where an event ended the solve; of a batch, with its
        axis in front.
    - `stats`: `num_steps`, `num_accepted_steps`, `num_rejected_steps`; `nfe`, the
        number of evaluations of the vector field, which is missing for a Diffrax solver
        that is no explicit Runge-Kutta method; and `num_failed`, the solves (one of
        each segment between jumps) that did not reach their end.
    - `t0`, `t1`: the times.
    - `inner`: Diffrax's own solution, where one call of Diffrax solved it all.

    Under Diffrax's names: `ts`, `ys`, `result`, `event_mask`, `interpolation`,
    `solver_state`, `controller_state`, `made_jump`, and `evaluate`, `derivative`.
    """

    y: PyTree[Array]
    stats: dict[str, Any]
    t0: Float[Array, "*batch"]
    t1: Float[Array, "*batch"]
    inner: diffrax.Solution | None = None

    @property
    def ts(self) -> PyTree:
        """The times saved: those that `saveat` asked for, by default `t1` alone."""
        return self.t1[..., None] if self.inner is None else self.inner.ts

    @property
    def ys(self) -> PyTree:
        """The states at `ts`."""
        if self.inner is not None:
            return self.inner.ys
        return jax.tree.map(lambda y: jnp.expand_dims(y, self.t1.ndim), self.y)

    @property
    def result(self) -> RESULTS:
        """`diffrax.RESULTS.successful`, or why the solve ended before its time."""
        if self.inner is not None:
            return self.inner.result
        failed = self.stats["num_failed"] > 0
        which = lambda x: RESULTS.where(  # noqa: E731
            x, RESULTS.max_steps_reached, RESULTS.successful
        )
        for _ in range(failed.ndim):
            which = eqx.filter_vmap(which)
        return which(failed)

    @property
    def event_mask(self) -> PyTree:
        return None if self.inner is None else self.inner.event_mask

    @property
    def interpolation(self) -> diffrax.DenseInterpolation | None:
        return None if self.inner is None else self.inner.interpolation

    @property
    def solver_state(self) -> PyTree:
        return None if self.inner is None else self.inner.solver_state

    @property
    def controller_state(self) -> PyTree:
        return None if self.inner is None else self.inner.controller_state

    @property
    def made_jump(self) -> Any:
        return None if self.inner is None else self.inner.made_jump

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True) -> PyTree:
        """The state at a time of a solve with `saveat=diffrax.SaveAt(dense=True)`.

        **Raises:** `ValueError` for a solve without.
        """
        return self._dense().evaluate(t0, t1, left)

    def derivative(self, t: Any, left: bool = True) -> PyTree:
        """The derivative of what `evaluate` gives. **Raises:** as it."""
        return self._dense().derivative(t, left)

    def _dense(self):
        if self.interpolation is None:
            raise ValueError(
                "saveat must be diffrax.SaveAt(dense=True) for a solution that is "
                "evaluated between steps."
            )
        return self.interpolation


def statistics(num_steps, accepted, rejected, nfe, failed) -> dict[str, Any]:
    """The counts by name; `nfe` may be `None` for unknown."""
    counts = {
        "num_steps": num_steps,
        "num_accepted_steps": accepted,
        "num_rejected_steps": rejected,
        "nfe": nfe,
        "num_failed": failed,
    }
    return {k: jnp.asarray(v) for k, v in counts.items() if v is not None}
