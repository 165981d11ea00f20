"""The input of a solve, a state promoted to one dtype, and its result, the solution."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree

from jnode.fields.base import AbstractVectorField
from jnode.solvers.schedule import Schedule, is_known

RESULTS = diffrax.RESULTS
NOT_FINITE = (
    "The state ceased to be finite while {} solved the ODE: look for NaN in the input, "
    "or take more steps or a smaller Lipschitz constant."
)

P = ParamSpec("P")
T = TypeVar("T")


def compiled(function: Callable[P, T]) -> Callable[P, T]:
    """Jitted once for all calls outside jit; inlined inside of jit."""
    return eqx.filter_jit(function, inline=True)  # pyright: ignore[reportCallIssue] # jit's own keyword


def promoted(field: Any, y0: PyTree, t0: Any, t1: Any, args: PyTree) -> PyTree:
    """A state promoted as in Diffrax: arrays of at least the times' dtype.

    Times that are Python numbers count as the default float. A state of less precision
    than the field's value (float32, if the weights are float64) is promoted to it. A
    list of numbers is an array for a field of this package, and otherwise, as in
    Diffrax, a PyTree.

    **Raises:** `TypeError` for a field that is a term of Diffrax.
    """
    if isinstance(field, diffrax.ODETerm):
        raise TypeError("field must be the function itself, not a diffrax.ODETerm.")
    if isinstance(y0, list) and isinstance(field, AbstractVectorField):
        numbers = all(isinstance(x, (int, float)) for x in jax.tree.leaves(y0))
        y0 = np.asarray(y0) if numbers else y0
    with jax.numpy_dtype_promotion("standard"):
        time = _time_dtype(t0, t1)
        y0 = jax.tree.map(lambda y: jnp.asarray(y, jnp.result_type(y, time)), y0)
        widest = jnp.finfo(jnp.asarray(0.0).dtype).bits
        if all(jnp.finfo(y.dtype).bits >= widest for y in jax.tree.leaves(y0)):
            return y0
        rates = eqx.filter_eval_shape(field, jnp.asarray(t0, time), y0, args)
        if jax.tree.structure(rates) != jax.tree.structure(y0):
            return y0  # the solve itself will say what is wrong
        return jax.tree.map(
            lambda y, rate: jnp.asarray(y, jnp.result_type(y, rate)), y0, rates
        )


def _time_dtype(*times):
    dtype = jnp.result_type(*times)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.asarray(0.0).dtype


def is_fast(y0: PyTree) -> bool:
    """Whether a state is one array of real numbers."""
    return eqx.is_array(y0) and jnp.issubdtype(y0.dtype, jnp.floating)


def real_dtype(y0: PyTree[Array]) -> Any:
    """The real type that all arrays of a state promote to."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*jax.tree.leaves(y0), jnp.zeros((), jnp.bfloat16))
    return jnp.finfo(dtype).dtype


class Solution(eqx.Module):
    """The result of a solve: the final state, statistics, and what was saved.

    - `y`: the state at `t1`, or where an event ended the solve; for a batch, with the
        batch axis first.
    - `stats`: `num_steps`, `num_accepted_steps`, `num_rejected_steps`; `nfe`, the
        number of evaluations of the vector field, which is missing for a Diffrax solver
        that is not an explicit Runge-Kutta method; and `num_failed`, the number of
        solves (one for each segment between jumps) that did not reach their end.
    - `t0`, `t1`: the times.
    - `plan`: the steps of a fixed solve; for an adaptive one whose steps were recorded,
        the segments between jumps.
    - `ends`: the times at which the recorded adaptive steps ended, padded with `inf`.
    - `inner`: Diffrax's own solution, if a single call of Diffrax did the solve.

    The following have Diffrax's names and meaning: `ts`, `ys`, `result`, `event_mask`,
    `interpolation`, `solver_state`, `controller_state`, `made_jump`, and `evaluate`,
    `derivative`.
    """

    y: PyTree[Array]
    stats: dict[str, Any]
    t0: Float[Array, "*batch"]
    t1: Float[Array, "*batch"]
    plan: Schedule | None = None
    ends: Float[Array, "*batch ends"] | None = None
    inner: diffrax.Solution | None = None

    @property
    def schedule(self) -> Schedule:
        """The steps that a single solve took, to certify, replay or inspect them.

        The steps of an adaptive `jnode.Solver` are recorded, unless its adjoint is
        "backsolve". With `saveat`, `event` or a `stepsize_controller`, they are
        recorded by `saveat=diffrax.SaveAt(steps=True)`.

        **Raises:** `ValueError` if they were not recorded, for a batch, and for a solve
        that failed; `TypeError` inside jit, where the steps of an adaptive solve are
        unknown.
        """
        if self.plan is None:
            raise ValueError(
                "The steps of this solve were not kept: solve one state by an adaptive "
                "jnode.Solver, or with saveat=diffrax.SaveAt(steps=True)."
            )
        if jnp.ndim(self.t0) > 0:
            raise ValueError(
                "A batch of solves has a schedule each: take one of them by "
                "jax.tree.map(lambda x: x[0], solution)."
            )
        if self.ends is None:
            return self.plan
        if not is_known(self):
            raise TypeError(
                "The steps of an adaptive solve are known only once it has run: take "
                "the schedule of its solution outside of jit."
            )
        if self.stats["num_failed"] > 0:
            raise ValueError(
                "The solve did not reach its end, so it has no schedule: allow more "
                "steps, or loosen the tolerances."
            )
        return self.plan.refined(self.ends)

    @property
    def ts(self) -> PyTree:
        """The saved times: those requested by `saveat`, by default only `t1`."""
        return self.t1[..., None] if self.inner is None else self.inner.ts

    @property
    def ys(self) -> PyTree:
        """The states at `ts`."""
        if self.inner is not None:
            return self.inner.ys
        return jax.tree.map(lambda y: jnp.expand_dims(y, self.t1.ndim), self.y)

    @property
    def result(self) -> RESULTS:
        """`diffrax.RESULTS.successful`, or the reason why the solve stopped early."""
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
        """The derivative of `evaluate` in time. **Raises:** as `evaluate`."""
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


Verdict = tuple[Bool[Array, ""], Bool[Array, ""]]
"""Whether a solve failed to reach its end, and whether its state is finite."""


@compiled
def verdict(y: PyTree[Array], stats: dict[str, Any]) -> Verdict:
    """Of the final state and the statistics of one solve or a batch."""
    return jnp.any(stats["num_failed"] > 0), is_finite(y)


def finished(
    y: PyTree[Array], found: Verdict, label: str, max_steps: int | None
) -> PyTree[Array]:
    """`y`, with an error at run time unless the solve reached its end.

    Outside of jit the host looks, so that the program of the solve calls no Python: JAX
    keeps programs that do out of its compilation cache.
    """
    failed, finite = found
    bad = failed | ~finite
    if not isinstance(bad, Tracer) and not bad.item():
        return y
    return eqx.branched_error_if(
        y,
        bad,
        jnp.where(failed, 0, 1),
        [
            f"{label} did not reach the end within max_steps={max_steps}: allow more "
            "steps, loosen the tolerances, or look for NaN in the input.",
            NOT_FINITE.format(label),
        ],
    )


def is_finite(y: PyTree[Array]) -> Bool[Array, ""]:
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(y)]
    return functools.reduce(jnp.logical_and, finite, jnp.asarray(True))


def name_of(x: Any) -> str:
    """The name of a class, or of the class of an instance."""
    return x.__name__ if isinstance(x, type) else type(x).__name__
