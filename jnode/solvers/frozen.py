"""An adaptive solver's steps, held fast."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jnode.constraints import plain
from jnode.solvers.schedule import cut, is_known
from jnode.solvers.solver import Solver
from jnode.solvers.state import promoted, real_dtype
from jnode.solvers.through import solve_adaptively


def freeze(
    field: Any,
    y0: PyTree,
    solver: Solver,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    args: PyTree = None,
) -> Solver:
    """The fixed-step solver that takes the steps of an adaptive one from `y0`.

    Not for use inside jit. Arguments as of `jnode.solve`.

    **Returns:** a `Solver` of the same method with a `grid`. From `y0` it gives what
    the adaptive one gives, up to rounding. From another state it takes the same steps,
    so its error is not controlled there, but its map is continuous and can be
    certified.

    **Raises:** `ValueError` for a solver whose steps are fixed already, an interval of
    no length, or times that are traced; at run time whatever `jnode.solve` raises.
    """
    if not solver.adaptive:
        raise ValueError(f"solver must be adaptive to be frozen; {solver} is fixed.")
    if not is_known(t0, t1) or float(t0) == float(t1):
        raise ValueError(
            f"t0 and t1 must be two known times to be frozen between, not {t0} and "
            f"{t1}."
        )
    y = promoted(field, y0, t0, t1, args)
    parts = cut((field, args), t0, t1, real_dtype(y))
    grid = [0.0]
    # As shares of the interval, in double precision: no step may cross a jump.
    inside = parts.inside if parts.sign == 1 else parts.inside[::-1]
    edges = (np.asarray([t0, *inside, t1], float) - t0) / (float(t1) - float(t0))
    for k, (a, b) in enumerate(parts.pairs):
        tree = parts.at((field, args), k)
        y, ends = _steps(tree, y, solver, a, b, parts.sign)
        ends = np.asarray(ends, np.float64)
        ends = ends[np.isfinite(ends)][:-1]
        width = edges[k + 1] - edges[k]
        shares = edges[k] + width * (ends - float(a)) / (float(b) - float(a))
        grid.extend([*shares.tolist(), float(edges[k + 1])])
    return Solver(solver.name, grid=tuple(grid), adjoint=solver.adjoint)


@eqx.filter_jit
def _steps(tree, y0, solver, a, b, sign):
    """The state at the end of a segment, and where its steps end."""
    saveat = diffrax.SaveAt(
        subs=(
            diffrax.SubSaveAt(t1=True),
            diffrax.SubSaveAt(steps=True, fn=lambda t, y, args: jnp.zeros(())),
        )
    )
    sol = solve_adaptively(
        plain(tree),
        y0,
        a,
        b,
        solver,
        jnp.asarray(solver.tolerances, real_dtype(y0)),
        sign,
        saveat=saveat,
        throw=True,
    )
    return jax.tree.map(lambda y: y[-1], sol.ys[0]), sol.ts[1]
