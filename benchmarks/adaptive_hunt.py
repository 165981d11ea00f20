"""Tries to refute certificates of adaptive solves: python benchmarks/adaptive_hunt.py.

Random fields, methods and tolerances, in float32 and float64; tolerances at which
images take different steps. Of every second model the weights are trained first, so
that an attack inside the certified balls takes away as much of the margins as possible.
Each image's certified radius is attacked at 0.999 of it: by the margin; by the
decisions (towards other steps, which changes the grid inside the certified ball); and
by the decisions first and the margin then. It counts changed predictions, of which
there must be none, and changed grids, of which there must be some, or nothing would
have been tried. What a search can find is shown by fields of one dimension that attain
the constants: it counts the radii that would be refuted if they were 2 % larger. Writes
adaptive_hunt.json and .md into benchmarks/results.
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
        # At 0 a norm has no slope, and a field at rest makes no error.
        error = h * combined(pair.b_error.tolist(), ks) + 1e-18
        scale, size = ladder.measure(y, y1, error)
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


def decisions(record):
    """The values whose signs decide, and whether each of them was asked for."""
    taken = jnp.concatenate([record["going"], record["matters"]])
    return jnp.concatenate([record["first"], record["second"]]), taken


def margin(logits, y):
    """By how much class `y` leads."""
    others = jnp.where(jnp.arange(len(logits)) == y, -jnp.inf, logits)
    return logits[y] - jnp.max(others)


def search(model, image, radius, mode, key, steps: int, attempts: int = ATTEMPTS):
    """The image in the ball that an attack found last, in float arithmetic inside it.

    `mode` 0 descends on the margin, 1 on one decision of the image's own path, chosen
    at random, 2 on the decision in the first half and on the margin in the second.
    """
    features, record = embedded(model, image, attempts)
    y = jnp.argmax(model.head(features))
    keys = jr.split(key)
    values, taken = decisions(record)
    # Mostly those that are nearest to another outcome.
    weights = jnp.where(taken, -jnp.log(jnp.abs(values) + 1e-9), -jnp.inf)
    chosen = jr.categorical(keys[0], weights)
    sign = jnp.sign(values[chosen])

    def objectives(x):
        features, record = embedded(model, x, attempts)
        return margin(model.head(features), y), sign * decisions(record)[0][chosen]

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
def hardened(model, tolerances, images, radii, keys):
    """The weights after a step by which the images found in the balls keep less of
    their margins."""
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)

    def kept(arrays):
        model = jnode.constraints.plain(eqx.combine(arrays, rest))
        model = model.with_solver(model.solver.at(tolerances))

        def one(image, radius, key):
            frozen = jax.tree.map(
                lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, model
            )
            found = search(frozen, image, radius, jnp.asarray(2), key, 24)
            logits, moved = (model.head(embedded(model, x)[0]) for x in (image, found))
            y = jnp.argmax(logits)
            return margin(moved, y) / jnp.maximum(margin(logits, y), 1e-6)

        return jnp.mean(jax.vmap(one)(images, radii, keys))

    slopes = jax.grad(kept)(arrays)
    size = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(slopes)) + 1e-12)
    arrays = jax.tree.map(
        lambda w, g: w - (0.1 / size).astype(w.dtype) * g, arrays, slopes
    )
    return eqx.combine(arrays, rest)


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
    """Weights for each field, method and type; every second one is trained."""

    trained: int = 8
    """Steps of that training."""

    images: int = 24
    """Images for each."""

    restarts: int = 3
    """Times that each attack starts."""


def typed(model, dtype):
    cast = lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x
    return jax.tree.map(cast, model)


def parting(model, images, seed: int):
    """Tolerances at which the images' first steps part, or later ones."""
    share = (0.7, 0.5, 0.2)[seed % 3] * (1, 0.25)[seed // 3 % 2]
    atol = jnp.quantile(first_errors(model, images), share) * (1, 0.2)[seed // 2 % 2]
    return jnp.stack([0.05 * atol, atol])


def row_of(kind, name, dtype, args: Args) -> dict[str, Any]:
    """Certifies and attacks the instances of a field and a method."""
    found = {"field": kind, "method": name, "dtype": np.dtype(dtype).name}
    count = dict.fromkeys(("images", "solves", "changed", "attempts"), 0)
    radii, moved_images = [], 0
    for seed in range(args.seeds):
        solver = Solver(name, rtol=1e-3, atol=1e-3, controller="ladder", max_steps=64)
        model = model_of(kind, solver, jr.key(seed))
        model = typed(model, dtype)
        key = jr.key(100 + seed)
        images = 1.5 * jr.normal(key, (args.images, 4, 4, 1), dtype)
        tolerances = parting(model, images, seed)
        for turn in range(args.trained if seed % 2 else 0):
            radii_now = 0.999 * certified(model, tolerances, images).radii
            keys = jr.split(jr.fold_in(key, 1000 + turn), len(images))
            model = hardened(model, tolerances, images, radii_now, keys)
            tolerances = parting(model, images, seed)
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


@eqx.filter_jit
def classes(model, tolerances, images):
    model = model.with_solver(model.solver.at(tolerances))
    return jnp.argmax(jax.vmap(model)(images), axis=1)


def fold_end(slope: float, steps: int) -> float:
    """Where so many steps of Heun's method lead from 0."""
    field, y, h = folded(0.3, slope, 1.0), 0.0, 1 / steps
    for _ in range(steps):
        k = field(0.0, y)
        y = y + h / 2 * (k + field(0.0, y + h * k))
    return float(y)


def fold_row(dtype) -> dict[str, Any]:
    """Radii of folded fields, and how many would be false if they were 2 % larger.

    From 0, one step ends in one class and two steps in the other; the one is kept by so
    little that a small move changes it. The whole ball is tried, pixel by pixel.
    """
    found: dict[str, Any] = {"dtype": np.dtype(dtype).name}
    count: dict[str, int] = {"instances": 0, "changed": 0, "refuted": 0}
    line = jnp.linspace(-1, 1, 401, dtype=dtype)[:, None, None, None]
    for slope in np.linspace(0.2, 0.8, 8).tolist():
        bias = (fold_end(slope, 1) + fold_end(slope, 2)) / 2
        model = typed(fold_model(1.0, bias, slope), dtype)
        for excess in (0.002, 0.005, 0.01, 0.02, 0.04):
            # The error of one step is a fifth of the slope.
            tolerances = jnp.asarray([1e-12, 0.2 * slope * (1 + excess)], dtype)
            radius = certified(model, tolerances, 0 * line[:1]).radii[0]
            count["instances"] += 1
            for name, share in (("changed", 0.999), ("refuted", 1 / 0.98)):
                reached = classes(model, tolerances, share * radius * line)
                count[name] += len(set(reached.tolist())) > 1
    return found | count


def main(args: Args) -> None:
    rows = []
    for dtype, kind, name in itertools.product(
        (jnp.float32, jnp.float64), FIELDS, METHODS
    ):
        with jax.enable_x64(dtype == jnp.float64):
            rows.append(row_of(kind, name, dtype, args))
            print(rows[-1], flush=True)
    folds = []
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            folds.append(fold_row(dtype))
            print(folds[-1], flush=True)
    found = {"rows": rows, "folds": folds, **dataclasses.asdict(args)}
    write(found | {"versions": versions()})
    if any(r["changed"] for r in rows + folds):
        raise SystemExit("A certificate was refuted.")


def write(found: dict[str, Any]) -> None:
    """Writes what was found, as JSON and as a table."""
    rows, folds = found["rows"], found["folds"]
    (RESULTS / "adaptive_hunt.json").write_text(json.dumps(found, indent=1) + "\n")
    models = found["seeds"] * len(rows)
    lines = [
        f"{models} models, {sum(r['images'] for r in rows)} images, "
        f"{sum(r['solves'] for r in rows)} attacks at 0.999 of the radius: "
        f"{sum(r['changed'] for r in rows)} changed predictions. Of every second model "
        "the weights were trained to break the certificate.",
        "",
        "Fields of one dimension that attain the constants, all of the ball tried: "
        + "; ".join(
            f"in {f['dtype']} {f['changed']} of {f['instances']} radii were false, and "
            f"{f['refuted']} would be if they were 2 % larger"
            for f in folds
        )
        + ".",
        "",
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


if __name__ == "__main__":
    run(lambda: main(tyro.cli(Args, description=__doc__)))
