"""Who takes part in benchmarks/speed.py, and what each is asked to do."""

from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch_peers as peers
from hlo_cost import work

import jnode
from jnode.solvers import solve_batch, tableau
from jnode.solvers.fixed import step as rk_step
from jnode.solvers.tableaus import rows

FIXED = jnode.Solver("rk4", steps=4)
ADAPTIVE = jnode.Solver("dopri5", rtol=1e-3, atol=1e-4)
OPERATIONS = ("training step", "inference", "attack step")


class Sizes(NamedTuple):
    batch: int
    channels: int
    side: int


class PlainConvField(eqx.Module):
    """The ODENet as Diffrax's documentation would have it: `eqx.nn.Conv2d`."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d

    def __init__(self, channels, key):
        keys = jax.random.split(key)
        self.first, self.second = (
            eqx.nn.Conv2d(channels, channels, 3, padding=1, key=k) for k in keys
        )

    def __call__(self, t, y, args):
        y = jnp.moveaxis(y, -1, 0)
        return jnp.moveaxis(self.second(jax.nn.relu(self.first(y))), 0, -1)


def by_jnode(field, solver):
    # As training does: it counts failures, where `throw` would call Python for each.
    return lambda field, y: solve_batch(field, y, solver, throw=False).y


def by_diffrax(field, solver):
    """`diffeqsolve` with its own defaults, mapped over the batch."""
    if solver.adaptive:
        rtol, atol = solver.tolerances
        controller, dt0 = diffrax.PIDController(rtol=rtol, atol=atol), None
    else:
        controller, dt0 = diffrax.ConstantStepSize(), 1 / solver.steps

    def one(field, y):
        term = diffrax.ODETerm(field)
        solution = diffrax.diffeqsolve(
            term, solver.diffrax(), 0.0, 1.0, dt0, y, stepsize_controller=controller
        )
        return solution.ys[-1]

    return lambda field, y: jax.vmap(one, (None, 0))(bake(field), y)


def by_scan(field, solver):
    """What a user would write by hand around the same field."""
    h = jnp.asarray(1 / solver.steps)

    def solve(field, y):
        field = bake(field)
        method = rows(tableau(solver.name))
        body = lambda y, _: (rk_step(field, h, h, y, method), None)
        y = jnp.moveaxis(y, 0, -2)
        return jnp.moveaxis(jax.lax.scan(body, y, length=solver.steps)[0], -2, 0)

    return solve


def bake(field):
    return field.bake() if hasattr(field, "bake") else field


def jax_runs(make_solve, field, solver, states, labels):
    """The three operations of one JAX contestant, each as a function of nothing."""
    solve = make_solve(field, solver)
    head = jnode.models.Head(states[0].size, 10, unit_norm=False, key=jax.random.key(1))
    optimizer = optax.adam(1e-4)
    params = (field, head)
    opt = optimizer.init(eqx.filter(params, eqx.is_inexact_array))

    def loss(params, y):
        field, head = params
        features = solve(field, y).reshape(len(y), -1)
        logits = jax.vmap(head)(features)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @eqx.filter_jit
    def step(params, opt, y):
        _, grads = eqx.filter_value_and_grad(loss)(params, y)
        updates, opt = optimizer.update(grads, opt)
        return eqx.apply_updates(params, updates), opt

    baked = (bake(field), head)
    infer = eqx.filter_jit(loss)
    attack = eqx.filter_jit(lambda params, y: jax.grad(lambda y: loss(params, y))(y))
    state = [params, opt]

    def train():
        state[:] = jax.block_until_ready(step(*state, states))

    return {
        "training step": train,
        "inference": lambda: infer(baked, states).block_until_ready(),
        "attack step": lambda: attack(baked, states).block_until_ready(),
    }


def torch_runs(model, states, labels):
    y = torch.as_tensor(states).permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(labels)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    loss = lambda y: torch.nn.functional.cross_entropy(model(y), labels)

    def train():
        optimizer.zero_grad()
        loss(y).backward()
        optimizer.step()

    def infer():
        with torch.no_grad():
            loss(y)

    def attack():
        x = y.clone().requires_grad_(True)
        torch.autograd.grad(loss(x), x)

    return {"training step": train, "inference": infer, "attack step": attack}


def contestants(sizes):
    """Per group and name, the operations; jnode's first in each group."""
    batch, channels, side = sizes
    states, labels = peers.numpy_batch(batch, side, channels)
    shape, key = (side, side, channels), jax.random.key(0)
    x, classes = jnp.asarray(states), jnp.asarray(labels)
    ortho = jnode.OrthoField(shape, key=key)
    circular = jnode.FreeField(shape, padding="circular", key=key)
    half = jnode.LowPrecisionField(ortho)
    conv = jnode.FreeField(shape, key=key)
    plain = PlainConvField(channels, key)

    def ours(make, field, solver):
        return lambda: jax_runs(make, field, solver, x, classes)

    def theirs(field, solve):
        model = lambda: peers.Classifier(field(), channels, side, solve)
        return lambda: torch_runs(model(), states, labels)

    def cayley(form):
        return lambda: peers.CayleyField(channels, side, form=form)

    rk4 = peers.torchdiffeq_solve("rk4", steps=FIXED.steps)
    dopri5 = peers.torchdiffeq_solve("dopri5", tolerances=ADAPTIVE.tolerances)
    torchode = peers.torchode_solve("dopri5", ADAPTIVE.tolerances)
    return {
        "Ortho, rk4x4": {
            "jnode": ours(by_jnode, ortho, FIXED),
            "lax.scan by hand": ours(by_scan, ortho, FIXED),
            "Diffrax": ours(by_diffrax, ortho, FIXED),
            "free field of the same form, jnode": ours(by_jnode, circular, FIXED),
            "products in bfloat16, jnode": ours(by_jnode, half, FIXED),
            "torchdiffeq, Cayley per call": theirs(cayley("per call"), rk4),
            "torchdiffeq, Cayley hoisted": theirs(cayley("hoisted"), rk4),
            "torchdiffeq, jnode's form": theirs(cayley("matmul"), rk4),
        },
        "ODENet (zero-padded), rk4x4": {
            "jnode": ours(by_jnode, conv, FIXED),
            "Diffrax, eqx.nn.Conv2d": ours(by_diffrax, plain, FIXED),
            "torchdiffeq": theirs(lambda: peers.ConvField(channels), rk4),
        },
        "Ortho, dopri5, rtol 1e-3, atol 1e-4": {
            "jnode": ours(by_jnode, ortho, ADAPTIVE),
            "Diffrax": ours(by_diffrax, ortho, ADAPTIVE),
            "torchdiffeq, Cayley per call": theirs(cayley("per call"), dopri5),
            "torchdiffeq, Cayley hoisted": theirs(cayley("hoisted"), dopri5),
            "torchode, Cayley hoisted": theirs(cayley("hoisted"), torchode),
        },
    }


def nfe(sizes):
    """NFE of the adaptive solve: the mean of the batch, and that of its slowest sample,
    whose steps the whole batch takes."""
    states, _ = peers.numpy_batch(sizes.batch, sizes.side, sizes.channels)
    shape = (sizes.side, sizes.side, sizes.channels)
    field = jnode.OrthoField(shape, key=jax.random.key(0))
    solve = eqx.filter_jit(lambda field, y: solve_batch(field, y, ADAPTIVE).stats)
    found = np.asarray(solve(field, jnp.asarray(states))["nfe"])
    return {"mean": float(found.mean()), "max": int(found.max())}


def work_of(sizes):
    """GFLOP of jnode's Ortho training step (products only)."""
    states, _ = peers.numpy_batch(sizes.batch, sizes.side, sizes.channels)
    field = jnode.OrthoField(states.shape[1:], key=jax.random.key(0))

    def loss(field, y):
        return jnp.sum(solve_batch(field, y, FIXED).y ** 2)

    arrays, static = eqx.partition(field, eqx.is_array)
    both = jax.grad(lambda arrays, y: loss(eqx.combine(arrays, static), y))
    # The Cayley transform's iteration takes some 8 turns at these weights.
    return (
        work(
            both, arrays, jnp.asarray(states), turns=8, platform=jax.default_backend()
        ).flops
        / 1e9
    )
