"""What a call of `solve` asks for: whether it agrees with itself, and what steps."""

import diffrax
import numpy as np

from jnode.solvers.schedule import is_known


def check_agreement(solver, given, options):
    """Raises `ValueError` for arguments that contradict a `jnode.Solver`."""
    for name, value in given.items():
        if name == "steps" and solver.grid is None and value == solver.steps:
            continue
        raise ValueError(
            f"{name} must be left out beside a jnode.Solver, which has its own steps "
            f"({solver}), or be the same; it is {value}. Give a Diffrax solver to "
            f"choose {name} here."
        )
    if options.adjoint is not None:
        if solver.adjoint != "direct":
            raise ValueError(
                f"adjoint must be left out beside a jnode.Solver with "
                f"adjoint={solver.adjoint!r}; it is {name_of(options.adjoint)}."
            )
        if is_backsolve(options.adjoint) and solver.grid is not None:
            raise ValueError(
                "adjoint must not be BacksolveAdjoint on a grid: it needs equal steps."
            )
    most = options.max_steps
    if most is None:
        return
    if solver.adaptive and most != solver.max_steps:
        raise ValueError(
            f"max_steps must be left out beside {solver}, which has max_steps="
            f"{solver.max_steps}; it is {most}."
        )
    if not solver.adaptive and most < solver.steps:
        raise ValueError(
            f"max_steps must be at least the {solver.steps} steps of {solver}, not "
            f"{most}."
        )


def shares_of(given, t0, t1):
    """Where fixed steps end, as shares of the interval, and what said so."""
    ways = [x for x in ("steps", "ts", "stepsize_controller") if x in given]
    if len(ways) > 1 or (ways in (["steps"], ["ts"]) and "dt0" in given):
        raise ValueError(
            f"{' and '.join([*ways, 'dt0'][:2])} must not be given together: each says "
            "what steps to take."
        )
    if not ways and "dt0" not in given:
        raise ValueError(
            "steps, ts or stepsize_controller must be given beside a Diffrax solver, "
            "for instance stepsize_controller=diffrax.PIDController(rtol=1e-3, "
            "atol=1e-4)."
        )
    if ways == ["steps"]:
        steps = given["steps"]
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be an integer of at least 1, not {steps!r}.")
        return np.arange(steps + 1) / steps, "steps"
    if ways == ["ts"]:
        return _ts_shares(given["ts"], t0, t1), "ts"
    dt0 = given.get("dt0")
    if dt0 is not None and is_known(dt0, t0, t1) and (t1 - t0) * float(dt0) < 0:
        raise ValueError(f"dt0 must lead from t0 = {t0} to t1 = {t1}; it is {dt0}.")
    return None, None


def _ts_shares(ts, t0, t1):
    if not is_known(ts, t0, t1):
        raise ValueError(
            "ts, t0 and t1 must be known numbers; where they are traced, give "
            "stepsize_controller=diffrax.StepTo(ts)."
        )
    ts = np.asarray(ts, np.float64)
    t0, t1 = float(t0), float(t1)
    if ts.ndim != 1 or len(ts) < 2:
        raise ValueError(f"ts must be a vector of at least 2 times, not {ts}.")
    if not np.all(np.sign(t1 - t0) * np.diff(ts) > 0):
        way = "increase" if t1 > t0 else "decrease"
        raise ValueError(f"ts must {way} from t0 = {t0:g} to t1 = {t1:g}; it is {ts}.")
    shares = (ts - t0) / (t1 - t0)
    if abs(shares[0]) > 1e-6 or abs(shares[-1] - 1) > 1e-6:
        raise ValueError(
            f"ts must run from t0 = {t0:g} to t1 = {t1:g}, not from {ts[0]:g} to "
            f"{ts[-1]:g}."
        )
    return np.concatenate([[0.0], shares[1:-1], [1.0]])


def name_of(x):
    """Of a class, or of what something is an instance of."""
    return x.__name__ if isinstance(x, type) else type(x).__name__


def is_backsolve(adjoint):
    return isinstance(adjoint, diffrax.BacksolveAdjoint)
