"""The states along a solve, for pictures and envelopes."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jnode.fields import AbstractVectorField
from jnode.solvers.solve import step
from jnode.solvers.solver import Solver


def trajectory(
    field: AbstractVectorField,
    y0: Float[Array, "*state"],
    solver: Solver,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    points: int = 17,
) -> tuple[Float[np.ndarray, " times"], Float[Array, "times *state"]]:
    """The states that a solver passes through.

    **Arguments:** as `jnode.solve`; `points` is how many equally spaced times an
    adaptive solver's interpolation is read at.

    **Returns:** the times and the states there: of a fixed-step solver after every
    step, the first at `t0`, the last at `t1`.
    """
    field = field.bake()
    if not solver.adaptive:
        assert solver.steps is not None
        times = np.linspace(t0, t1, solver.steps + 1)
        h = jnp.asarray((t1 - t0) / solver.steps, y0.dtype)

        def body(y, t):
            after = step(field, t, h, y, solver)
            return after, after

        _, states = jax.lax.scan(body, y0, jnp.asarray(times[:-1], y0.dtype))
        return times, jnp.concatenate([y0[None], states])
    times = np.linspace(t0, t1, points)
    rtol, atol = solver.tolerances
    sol = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver.diffrax(),
        t0,
        t1,
        None,
        y0,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=solver.max_steps,
        saveat=diffrax.SaveAt(ts=jnp.asarray(times, y0.dtype)),
    )
    return times, sol.ys  # pyright: ignore[reportReturnType]
