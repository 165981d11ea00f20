"""Whether gradients are those of the numerical solve or of the ideal one."""

from typing import Any

from jnode.solvers import Solver


def adjoint(solver: Solver) -> dict[str, Any]:
    """A flag where the adjoint is continuous: optimise-then-discretise."""
    continuous = solver.adjoint == "backsolve"
    flags = []
    if continuous:
        flags.append(
            "continuous adjoint: gradients come from the adjoint equations, solved "
            "backwards, and are not those of the evaluated solve; evaluate with the "
            "adjoint direct."
        )
    how = {
        True: "The solver's adjoint is continuous: what attacks follow is the gradient "
        "of the ideal flow, solved anew.",
        False: "The numerical solve itself is differentiated, step by step"
        + (
            "; the sizes of its adaptive steps count as constants."
            if solver.adaptive
            else "."
        ),
    }
    return {
        "adjoint": solver.adjoint,
        "continuous": continuous,
        "adaptive": solver.adaptive,
        "says": how[continuous],
        "flags": flags,
    }
