"""Tries to refute certificates of adaptive solves: python benchmarks/adaptive_hunt.py.

Random fields, methods and tolerances, in float32 and float64; tolerances at which
images take different steps. Each image's certified radius is attacked at 0.999 of it:
by the margin; by the decisions (towards other steps, which changes the grid inside the
certified ball); and by the decisions first and the margin then. It counts changed
predictions, of which there must be none, and changed grids, of which there must be
some, or nothing would have been tried. That such a search can refute a certificate is
shown in tests/test_paths.py, on `fold_model`: a field of one dimension that attains the
constants, where radii 2 % larger are false. Writes adaptive_hunt.json and .md into
benchmarks/results.
"""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro

import jnode
from jnode._process import run, versions
from jnode.certify.adaptive import adaptive_radii
from jnode.models import Head, ODEBlock
from jnode.models.layers import Flatten
from jnode.solvers import LadderController, Solver
from jnode.solvers.ladder import Rung

RESULTS = Path(__file__).parent / "results"
SIZE, CLASSES = 16, 3
MODES = ("margin", "decision", "both")
METHODS = ("heun", "bosh3", "dopri5", "tsit5")
ATTEMPTS = 48
"""How many attempts of a solve are recorded."""


def _ortho(key):
    return jnode.OrthoField((SIZE,), lipschitz=1.0, activation="maxmin", key=key)


def _flow(key):
    return jnode.GradientFlowField((SIZE,), lipschitz=2.0, key=key)


def _segments(key):
    fields = [jnode.OrthoField((SIZE,), lipschitz=1.0, key=k) for k in jr.split(key)]
    return jnode.PiecewiseField(fields, t0=0.0, t1=1.0)


FIELDS = {"ortho": _ortho, "gradient flow": _flow, "ortho, 2 segments": _segments}


def model_of(kind: str, solver: Solver, key) -> jnode.ODEClassifier:
    """A classifier of images of 4 by 4 pixels with one field."""
    keys = jr.split(key)
    head = Head(SIZE, CLASSES, unit_norm=True, key=keys[0])
    return jnode.ODEClassifier(
        [Flatten(), ODEBlock(FIELDS[kind](keys[1]), solver)], head, (4, 4, 1)
    )


def walk(block: ODEBlock, y, attempts: int = ATTEMPTS) -> tuple[Any, dict[str, Any]]:
    """A solve, attempt by attempt, by code of its own: the end, and what was decided.

    The values of both decisions, and the state of the ladder, of each attempt.
    """
    schedule = block.solver.plan(block.field, block.t0, block.t1)
    rtol, atol = block.solver.tolerances
    ladder = LadderController(rtol, atol, block.solver.first_step, block.solver.doubles)
    method: Any = block.solver.diffrax()
    records = []
    for k, part in enumerate(schedule.parts):
        field = schedule.at(block.field, k)
        y, record = _walk(field, method, ladder, (part.t0, part.t1), y, attempts)
        records.append(record)
    return y, jax.tree.map(lambda *parts: jnp.concatenate(parts), *records)


def _walk(field, method, ladder, times, y, attempts):
    pair: diffrax.ButcherTableau = method.tableau
    rows = [[], *(row.tolist() for row in pair.a_lower)]

    def combined(weights, ks):
        return sum((w * k for w, k in zip(weights, ks, strict=False)), 0 * ks[0])

    def body(carry, _):
        y, position, level = carry
        rung = Rung(position, level)
        going = position < ladder.whole
        t, end = (
            ladder.time(p, *(jnp.asarray(t, y.dtype) for t in times))
            for p in (position, position + ladder.ticks(level))
        )
        h, ks = end - t, []
        for row in rows:
            ks.append(field(t, y + h * combined(row, ks) if row else y))
        y1 = y + h * combined(pair.b_sol.tolist(), ks)
        scale, size = ladder.measure(y, y1, h * combined(pair.b_error.tolist(), ks))
        first, second = scale - size, ladder.theta(method.order(None)) * scale - size
        keep = first >= 0
        after = jax.tree.map(
            lambda a, b: jnp.where(going, jnp.where(keep, a, b), rung.position),
            ladder.onwards(rung, second >= 0).position,
            ladder.shorter(rung).position,
        )
        level1 = jnp.where(
            keep, ladder.onwards(rung, second >= 0).level, ladder.shorter(rung).level
        )
        matters = going & keep & ladder.may_double(rung) & (after < ladder.whole)
        record = {
            "scale": scale,
            "first": first,
            "second": second,
            "going": going,
            "matters": matters,
            "position": position,
            "level": jnp.where(going, level, -1),
        }
        y = jnp.where(going & keep, y1, y)
        return (y, after, jnp.where(going, level1, level)), record

    zero = jnp.zeros((), jnp.int32)
    (y, *_), record = jax.lax.scan(body, (y, zero, zero), None, length=attempts)
    return y, record


def embedded(model, image, attempts: int = ATTEMPTS):
    """An image's features, and its decisions, of so many attempts at most."""
    y, records = image, []
    for layer in model.layers:
        if isinstance(layer, ODEBlock):
            y, record = walk(layer, y, attempts)
            records.append(record)
        else:
            y = layer(y)
    return y.ravel(), jax.tree.map(lambda *parts: jnp.concatenate(parts), *records)


def search(model, image, radius, mode, key, steps: int, attempts: int = ATTEMPTS):
    """The image in the ball that an attack found last, in float arithmetic inside it.

    `mode` 0 descends on the margin, 1 on one decision of the image's own path, chosen
    at random, 2 on the decision in the first half and on the margin in the second.
    """
    features, record = embedded(model, image, attempts)
    y = jnp.argmax(model.head(features))
    keys = jr.split(key)
    values = jnp.concatenate([record["first"], record["second"]])
    open_ = jnp.concatenate([record["going"], record["matters"]])
    # Mostly those that are nearest to another outcome.
    weights = jnp.where(open_, -jnp.log(jnp.abs(values) + 1e-9), -jnp.inf)
    chosen = jr.categorical(keys[0], weights)
    sign = jnp.sign(values[chosen])

    def objectives(x):
        features, record = embedded(model, x, attempts)
        logits = model.head(features)
        others = jnp.where(jnp.arange(len(logits)) == y, -jnp.inf, logits)
        both = jnp.concatenate([record["first"], record["second"]])
        return logits[y] - jnp.max(others), sign * both[chosen]

    def projected(x):
        move = x - image
        length = jnp.sqrt(jnp.sum(move**2) + 1e-30)
        return image + move * jnp.minimum(1, radius / length)

    def body(i, x):
        margin, decision = jax.jacrev(objectives)(x)
        late = (mode == 2) & (i >= steps // 2)
        slope = jnp.where((mode == 0) | late, margin, decision)
        slope = slope / jnp.sqrt(jnp.sum(slope**2) + 1e-30)
        return projected(x - 2.5 * radius / steps * slope)

    noise = jr.normal(keys[1], image.shape, image.dtype)
    start = projected(image + radius * noise / jnp.sqrt(jnp.sum(noise**2)))
    return jax.lax.fori_loop(0, steps, body, start)


@eqx.filter_jit
def certified(model, tolerances, images):
    model = model.with_solver(model.solver.at(tolerances))
    return adaptive_radii(*jnode.resolve(model), images)


@eqx.filter_jit
def attacked(model, tolerances, images, radii, mode, keys, attempts: int = ATTEMPTS):
    """The attacked images, whether predictions changed, and whether grids did."""
    model = jnode.constraints.plain(model)
    model = model.with_solver(model.solver.at(tolerances))

    def one(image, radius, key):
        found = search(model, image, radius, mode, key, 24, attempts)
        records = [embedded(model, x, attempts)[1] for x in (image, found)]
        grids = [(r["position"], r["level"]) for r in records]
        differ = jax.tree.map(lambda a, b: jnp.any(a != b), *grids)
        moved = differ[0] | differ[1]
        changed = jnp.argmax(model(image)) != jnp.argmax(model(found))
        apart = jnp.sqrt(jnp.sum((found - image) ** 2))
        return changed & (apart <= radius * 1.0005), moved

    return jax.vmap(one)(images, radii, keys)


@eqx.filter_jit
def first_errors(model, images):
    r"""$\|e\|/\sqrt n$ of each image's first attempt."""
    tight = model.with_solver(model.solver.at(jnp.zeros(2)))
    records = jax.vmap(lambda x: embedded(tight, x)[1])(images)
    return -records["first"][:, 0] / SIZE**0.5


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes a table of attacks on certified radii of adaptive solves."""

    seeds: int = 6
    """Weights for each field, method and type."""

    images: int = 24
    """Images for each."""

    restarts: int = 3
    """Times that each attack starts."""


def row_of(kind, name, dtype, args: Args) -> dict[str, Any]:
    """Certifies and attacks the instances of a field and a method."""
    found = {"field": kind, "method": name, "dtype": np.dtype(dtype).name}
    count = dict.fromkeys(("images", "solves", "changed", "attempts"), 0)
    radii, moved_images = [], 0
    for seed in range(args.seeds):
        solver = Solver(name, rtol=1e-3, atol=1e-3, controller="ladder", max_steps=64)
        model = model_of(kind, solver, jr.key(seed))
        cast = lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x
        model = jax.tree.map(cast, model)
        key = jr.key(100 + seed)
        images = 1.5 * jr.normal(key, (args.images, 4, 4, 1), dtype)
        share = (0.7, 0.5, 0.2)[seed % 3] * (1, 0.25)[seed // 3 % 2]
        atol = jnp.quantile(first_errors(model, images), share) * (1, 0.2)[seed % 2]
        tolerances = jnp.stack([0.05 * atol, atol])
        proven = certified(model, tolerances, images)
        radii.append(np.asarray(proven.radii))
        count["attempts"] += int(np.sum(proven.attempts))
        count["images"] += len(images)
        moved_any = np.zeros(len(images), bool)
        for mode, restart in itertools.product(range(3), range(args.restarts)):
            keys = jr.split(jr.fold_in(key, 10 * restart + mode), len(images))
            inputs = (model, tolerances, images, 0.999 * proven.radii)
            changed, moved = attacked(*inputs, jnp.asarray(mode), keys)
            positive = np.asarray(proven.radii) > 0
            count["solves"] += int(np.sum(positive))
            count["changed"] += int(np.sum(np.asarray(changed) & positive))
            moved_any |= np.asarray(moved) & positive
        moved_images += int(np.sum(moved_any))
    every = np.concatenate(radii)
    return (
        found
        | count
        | {
            "images_whose_grid_changed": moved_images,
            "certified": float(np.mean(every > 0)),
            "median_radius": float(np.median(every)),
        }
    )


def folded(turn: float, slope: float, base: float):
    """A field of one dimension whose slope is L up to a point, and -L behind it.

    Of Heun's method, whose two stages lie on both sides, it attains the constant of the
    error estimate.
    """

    def fn(t, y, args=None):
        return base + slope * (turn - jnp.abs(y - turn))

    return jnode.Certified(fn, bounds=lambda fn: jnode.Bounds(slope))


def fold_model(atol: float, bias: float, slope: float = 0.5) -> jnode.ODEClassifier:
    """Two classes, told apart by where the folded field's solve of one pixel ends."""
    solver = Solver("heun", rtol=1e-12, atol=atol, controller="ladder")
    block = ODEBlock(folded(0.3, slope, 1.0), solver)
    head = Head(1, 2, unit_norm=False, key=jr.key(0))
    weights = (jnp.asarray([[1.0], [-1.0]]), jnp.asarray([-bias, bias]))
    head = eqx.tree_at(lambda h: (h.weight, h.bias), head, weights)
    return jnode.ODEClassifier([Flatten(), block], head, (1, 1, 1))


def main(args: Args) -> None:
    rows = []
    for dtype, kind, name in itertools.product(
        (jnp.float32, jnp.float64), FIELDS, METHODS
    ):
        with jax.enable_x64(dtype == jnp.float64):
            rows.append(row_of(kind, name, dtype, args))
            print(rows[-1], flush=True)
    found = {"rows": rows, **dataclasses.asdict(args), "versions": versions()}
    (RESULTS / "adaptive_hunt.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        "| field | method | type | images | certified | median radius | attempts per "
        "image | attacked solves | images whose grid changed | changed predictions |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in rows:
        each = r["attempts"] / r["images"]
        lines.append(
            f"| {r['field']} | {r['method']} | {r['dtype']} | {r['images']} | "
            f"{r['certified']:.0%} | {r['median_radius']:.3f} | {each:.1f} | "
            f"{r['solves']} | {r['images_whose_grid_changed']} | {r['changed']} |"
        )
    (RESULTS / "adaptive_hunt.md").write_text("\n".join(lines) + "\n")
    if any(r["changed"] for r in rows):
        raise SystemExit("A certificate was refuted.")


if __name__ == "__main__":
    run(lambda: main(tyro.cli(Args, description=__doc__)))
