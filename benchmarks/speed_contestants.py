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
from jax_peers import (
    PlainConvField,
    bake,
    by_diffrax,
    by_diffrax_faq,
    by_gradsolve,
    by_jnode,
    by_scan,
)

import jnode
from jnode.solvers import solve_batch

# On GPUs JAX would multiply in TF32 where a contestant asks for nothing else.
jax.config.update("jax_default_matmul_precision", "highest")

FIXED = jnode.Solver("rk4", steps=4)
ADAPTIVE = jnode.Solver("dopri5", rtol=1e-3, atol=1e-4)
TSIT5 = jnode.Solver("tsit5", rtol=1e-3, atol=1e-4)
OPERATIONS = ("training step", "inference", "attack step")


class Sizes(NamedTuple):
    batch: int
    channels: int
    side: int


# What must be set before a contestant's libraries are imported.
_ERRORS_ARE_NAN = {"EQX_ON_ERROR": "nan"}
_SINGLE = {"GRADSOLVE_X64": "0"}
COMPILED = ", torch.compile"
MODE = "reduce-overhead" if peers.DEVICE == "cuda" else "default"
FAQ = "Diffrax by its FAQ"


def environment(name: str) -> dict[str, str] | None:
    """The environment of the process in which a contestant runs apart from the others;
    `None` for one that runs beside jnode.

    With torch.compile it runs apart because compilation may take too long.
    """
    if name.startswith(FAQ):
        return _ERRORS_ARE_NAN
    if name.startswith("gradsolve"):
        return _SINGLE
    return {} if name.endswith(COMPILED) else None


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
    y = torch.as_tensor(states, device=peers.DEVICE).permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(labels, device=peers.DEVICE)
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

    def finished(run):
        def call():
            run()
            if peers.DEVICE == "cuda":
                torch.cuda.synchronize()

        return call

    runs = {"training step": train, "inference": infer, "attack step": attack}
    return {name: finished(run) for name, run in runs.items()}


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

    def theirs(field, solve, *, compiled=False):
        def runs():
            model = peers.Classifier(field(), channels, side, solve).to(peers.DEVICE)
            # What the compiler cannot follow, it leaves to Python. On a GPU the mode
            # records CUDA graphs.
            model = torch.compile(model, mode=MODE) if compiled else model
            return torch_runs(model, states, labels)

        return runs

    def cayley(form):
        return lambda: peers.CayleyField(channels, side, form=form)

    def zero_padded():
        return peers.ConvField(channels)

    rk4 = peers.torchdiffeq_solve("rk4", steps=FIXED.steps)
    dopri5 = peers.torchdiffeq_solve("dopri5", tolerances=ADAPTIVE.tolerances)
    torchode = peers.torchode_solve("dopri5", ADAPTIVE.tolerances)
    direct = diffrax.DirectAdjoint()
    faq, by_faq = by_diffrax_faq(), by_diffrax_faq(direct)
    at_once = by_diffrax_faq(direct, whole=True)
    return {
        "Ortho, rk4x4": {
            "jnode": ours(by_jnode, ortho, FIXED),
            "lax.scan by hand": ours(by_scan, ortho, FIXED),
            "Diffrax": ours(by_diffrax, ortho, FIXED),
            FAQ: ours(faq, ortho, FIXED),
            f"{FAQ}, DirectAdjoint": ours(by_faq, ortho, FIXED),
            f"{FAQ}, DirectAdjoint, batch as one state": ours(at_once, ortho, FIXED),
            "gradsolve": ours(by_gradsolve(x), ortho, FIXED),
            "free field of the same form, jnode": ours(by_jnode, circular, FIXED),
            "products in bfloat16, jnode": ours(by_jnode, half, FIXED),
            "torchdiffeq, Cayley per call": theirs(cayley("per call"), rk4),
            "torchdiffeq, Cayley hoisted": theirs(cayley("hoisted"), rk4),
            "torchdiffeq, jnode's form": theirs(cayley("matmul"), rk4),
            f"torchdiffeq, Cayley hoisted{COMPILED}": theirs(
                cayley("hoisted"), rk4, compiled=True
            ),
            f"torchdiffeq, jnode's form{COMPILED}": theirs(
                cayley("matmul"), rk4, compiled=True
            ),
        },
        "ODENet (zero-padded), rk4x4": {
            "jnode": ours(by_jnode, conv, FIXED),
            "Diffrax, eqx.nn.Conv2d": ours(by_diffrax, plain, FIXED),
            f"{FAQ}, DirectAdjoint, batch as one state": ours(at_once, plain, FIXED),
            f"{FAQ}, DirectAdjoint, batch as one state, jnode's field": ours(
                at_once, conv, FIXED
            ),
            "torchdiffeq": theirs(zero_padded, rk4),
            f"torchdiffeq{COMPILED}": theirs(zero_padded, rk4, compiled=True),
        },
        "Ortho, dopri5, rtol 1e-3, atol 1e-4": {
            "jnode": ours(by_jnode, ortho, ADAPTIVE),
            "tsit5, jnode": ours(by_jnode, ortho, TSIT5),
            "Diffrax": ours(by_diffrax, ortho, ADAPTIVE),
            FAQ: ours(faq, ortho, ADAPTIVE),
            f"{FAQ}, DirectAdjoint": ours(by_faq, ortho, ADAPTIVE),
            f"{FAQ}, batch as one state": ours(
                by_diffrax_faq(whole=True), ortho, ADAPTIVE
            ),
            "gradsolve, tsit5": ours(by_gradsolve(x), ortho, TSIT5),
            "torchdiffeq, Cayley per call": theirs(cayley("per call"), dopri5),
            "torchdiffeq, Cayley hoisted": theirs(cayley("hoisted"), dopri5),
            "torchode, Cayley hoisted": theirs(cayley("hoisted"), torchode),
            f"torchdiffeq, Cayley hoisted{COMPILED}": theirs(
                cayley("hoisted"), dopri5, compiled=True
            ),
            f"torchode, Cayley hoisted{COMPILED}": theirs(
                cayley("hoisted"), torchode, compiled=True
            ),
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
