"""The peers in JAX: Diffrax, gradsolve and a scan written by hand, around any field.

Each is a function `make(field, solver)` that returns `solve(field, states)`, for states
with the batch axis first.

Diffrax is used in three ways: with its own defaults; as its FAQ advises
(docs.kidger.site/diffrax/further_details/faq, at version 0.7.2: why it may seem slower
than another library), with `StepTo` for fixed steps and EQX_ON_ERROR=nan, which must be
set before Equinox is imported; and so with a whole batch as one state.
"""

from types import SimpleNamespace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from jnode.solvers import solve_batch, tableau
from jnode.solvers.fixed import step as rk_step
from jnode.solvers.tableaus import rows

MAX_STEPS = 256


class PlainConvField(eqx.Module):
    """The ODENet as Diffrax's documentation would have it: `eqx.nn.Conv2d`.

    A batch lies between grid and channels, as for the fields of this package.
    """

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d

    def __init__(self, channels, key):
        keys = jax.random.split(key)
        self.first, self.second = (
            eqx.nn.Conv2d(channels, channels, 3, padding=1, key=k) for k in keys
        )

    def __call__(self, t, y, args):
        if y.ndim == 4:
            return jax.vmap(self.one, 2, 2)(y)
        return self.one(y)

    def one(self, y):
        y = jnp.moveaxis(y, -1, 0)
        return jnp.moveaxis(self.second(jax.nn.relu(self.first(y))), 0, -1)


def bake(field):
    return field.bake() if hasattr(field, "bake") else field


def by_jnode(field, solver):
    # As training does: it counts failures, where `throw` would call Python for each.
    return lambda field, y: solve_batch(field, y, solver, throw=False).y


def by_scan(field, solver):
    """What a user would write by hand around the same field."""
    h = jnp.asarray(1 / solver.steps)

    def solve(field, y):
        field = bake(field)
        method = rows(tableau(solver.name))
        body = lambda y, _: (rk_step(field, (0 * h, h), h, y, method), None)
        y = jnp.moveaxis(y, 0, -2)
        return jnp.moveaxis(jax.lax.scan(body, y, length=solver.steps)[0], -2, 0)

    return solve


def by_diffrax(field, solver):
    """`diffeqsolve` with its own defaults, mapped over the batch."""
    if solver.adaptive:
        control, dt0 = _pid(solver), None
    else:
        control, dt0 = diffrax.ConstantStepSize(), 1 / solver.steps
    options = {"stepsize_controller": control}
    return _mapped(lambda field, y: _diffeqsolve(field, y, solver, dt0, options))


def by_diffrax_faq(adjoint=None, *, whole=False):
    """As Diffrax's FAQ advises; with `whole`, all states of a batch are one state."""

    def make(field, solver):
        if solver.adaptive:
            control, most = _pid(solver), MAX_STEPS
        else:
            control = diffrax.StepTo(ts=jnp.linspace(0.0, 1.0, solver.steps + 1))
            most = solver.steps
        options = {"stepsize_controller": control, "max_steps": most}
        if adjoint is not None:
            options["adjoint"] = adjoint
        solve = lambda field, y: _diffeqsolve(field, y, solver, None, options)
        return _at_once(solve) if whole else _mapped(solve)

    return make


def _pid(solver):
    rtol, atol = solver.tolerances
    return diffrax.PIDController(rtol=rtol, atol=atol)


def _diffeqsolve(field, y, solver, dt0, options):
    term = diffrax.ODETerm(field)
    return diffrax.diffeqsolve(term, solver.diffrax(), 0.0, 1.0, dt0, y, **options).ys[
        -1
    ]


def _mapped(solve):
    return lambda field, y: jax.vmap(solve, (None, 0))(bake(field), y)


def _at_once(solve):
    def batch(field, y):
        return jnp.moveaxis(solve(bake(field), jnp.moveaxis(y, 0, -2)), -2, 0)

    return batch


def by_gradsolve(states):
    """gradsolve's RK4, or its Tsit5 by record and replay: one program for both.

    Replaying takes one step more than the slowest of `states` needs, since a step of
    training changes the field; if that is too few, the result is NaN. States are flat
    there, and parameters belong to one trajectory each; weights that all share are
    closed over instead. GRADSOLVE_X64=0 must be set before its import.
    """

    def flat(field, y):
        def rates(t, x, parameters):
            return field(t, x.reshape(y.shape[1:]), None).ravel()

        return rates, (y.reshape(len(y), -1), jnp.zeros((len(y), 1)))

    def record(field, y, solver, most):
        """Step lengths and numbers of accepted steps, and whether a solve failed."""
        from gradsolve.solvers.method import TSIT5_METHOD
        from gradsolve.solvers.record_jax import _record_one_traj

        rates, problem = flat(field, y)
        rtol, atol = solver.tolerances
        run = _record_one_traj(
            TSIT5_METHOD, rates, 0.0, 1.0, rtol, atol, 0.01, MAX_STEPS, most, -1.0
        )
        _, lengths, accepted, _, status = jax.vmap(run)(*problem)
        return lengths, accepted, jnp.any(status > 0)

    def make(field, solver):
        from gradsolve.solvers.fixed_step_explicit import solve_jax
        from gradsolve.warp.warp_replay import replay_solve_jax

        expected = {"rk4": not solver.adaptive, "tsit5": solver.adaptive}
        if not expected.get(solver.name):
            raise ValueError(f"solver must be rk4 or adaptive tsit5, not {solver}.")
        most = 0
        if solver.adaptive:
            _, accepted, _ = eqx.filter_jit(record)(
                bake(field), states, solver, MAX_STEPS
            )
            most = int(accepted.max()) + 1

        def solve(field, y):
            field = bake(field)
            rates, problem = flat(field, y)
            told = SimpleNamespace(t0=0.0, t1=1.0, is_stiff=False, f_jax=rates)
            if not solver.adaptive:
                return solve_jax(told, *problem, n_steps=solver.steps).reshape(y.shape)
            lengths, _, failed = jax.lax.stop_gradient(record(field, y, solver, most))
            ends = replay_solve_jax(told, *problem, lengths)
            return jnp.where(failed, jnp.nan, ends).reshape(y.shape)

        return solve

    return make
