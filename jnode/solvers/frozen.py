"""An adaptive solver's steps, held fast."""

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jnode.fields import AbstractVectorField, PiecewiseField
from jnode.solvers.solve import check_span, save_adaptive, solve
from jnode.solvers.solver import Solver


def freeze(
    field: AbstractVectorField,
    y0: Float[Array, "*state"],
    solver: Solver,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
) -> Solver:
    """The fixed-step solver that takes the steps of an adaptive one from `y0`.

    Not for use inside jit. Arguments as of `jnode.solve`.

    **Returns:** a `Solver` of the same method with a `grid`. From `y0` it gives what
    the adaptive one gives, up to rounding. From another state it takes the same steps,
    so its error is not controlled there, but its map is continuous and can be
    certified.

    **Raises:** `ValueError` for a solver whose steps are fixed already; at run time
    whatever `jnode.solve` raises.
    """
    if not solver.adaptive:
        raise ValueError(f"solver must be adaptive to be frozen; {solver} is fixed.")
    field = field.bake()
    if not isinstance(field, PiecewiseField):
        return _on(solver, _shares(field, y0, solver, t0, t1))
    check_span(field, t0, t1)
    times, grid = field.times(), [0.0]
    for k in range(field.count):
        piece, span = field.piece(k), {"t0": times[k], "t1": times[k + 1]}
        shares = _shares(piece, y0, solver, **span)
        grid.extend((k + shares[1:]) / field.count)
        y0 = solve(piece, y0, solver, **span).y
    return _on(solver, grid)


def _on(solver, grid):
    return Solver(
        solver.name, grid=tuple(float(share) for share in grid), adjoint=solver.adjoint
    )


@eqx.filter_jit
def _times(field, y0, solver, t0, t1):
    saveat = diffrax.SaveAt(steps=True, fn=lambda t, y, args: jnp.zeros(()))
    return save_adaptive(field, y0, solver, t0, t1, saveat).ts


def _shares(field, y0, solver, t0, t1) -> Float[np.ndarray, " times"]:
    ends = np.asarray(_times(field, y0, solver, t0, t1), np.float64)
    ends = ends[np.isfinite(ends)]
    shares = (ends - t0) / (t1 - t0)
    # The last step ends at t1, up to the rounding of times in float32.
    return np.concatenate([[0.0], shares[:-1], [1.0]])
