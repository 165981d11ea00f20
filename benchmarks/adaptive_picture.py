"""Draws one image's certificate of an adaptive solve.

    python benchmarks/adaptive_picture.py RUN --index 0

Enumerates, without merging any, all paths of steps that images near a test image can
take, in the trained model of a run folder; and draws them with the distances that the
theorem of docs/adaptive.md compares. Writes benchmarks/results/adaptive.png.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jnode
from jnode import certify, data
from jnode._process import run
from jnode.certify import adaptive, paths
from jnode.certify.decisions import constants
from jnode.report.style import COLOURS, INK, legend, new_figure, tidy, to_png

RESULTS = Path(__file__).parent / "results"
OUTCOMES = ("kept", "kept, then doubled", "rejected")


@dataclasses.dataclass(frozen=True)
class Args:
    """Draws the paths that a ball can reach, and the radius that they give."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """A trained run with one ODE block and controller ladder or halving."""

    index: int = 0
    """Which test image."""

    tolerance: float | None = None
    """Other tolerances than those of the run."""

    most: int = 400
    """The most attempts to enumerate."""


class Attempt(NamedTuple):
    """A step that was tried: its ends and outcome, and how far inputs that decide
    otherwise are at least."""

    begin: float
    end: float
    outcome: str
    away: float


class Reached(NamedTuple):
    """A path: its attempts, `entry` and `rho`."""

    attempts: tuple[Attempt, ...]
    entry: float
    rho: float


def reachable(model, bounds, image, limit: float, most: int) -> list[Reached]:
    """All paths whose entry is below `limit`, by depth-first search."""
    *before, block = model.layers
    if not hasattr(block, "solver") or len(bounds.fields[-1]) != 1:
        raise ValueError("RUN must end with an ODE block of one segment.")
    nodes = paths.started(image[None], jnp.zeros(1), jnp.ones(1))
    for layer, constant in zip(before, bounds.layers, strict=False):
        nodes = adaptive._through(layer, constant, nodes)
    (solve,) = adaptive._segments(block, bounds.fields[-1], jnp.float32)
    table = constants(*solve[1:5], nodes.state[0, 0].size)
    children = eqx.filter_jit(
        lambda node: [child for child, _ in paths._children(solve, table, node)]
    )
    label = jnp.argmax(model(image))
    stack: list[tuple[Any, tuple[Attempt, ...]]]
    stack = [(jax.tree.map(lambda x: x[0, 0], nodes), ())]
    found, spent = [], 0
    while stack and spent < most:
        node, attempts = stack.pop()
        if int(node.rung.position) == solve.ladder.whole:
            lone = jax.tree.map(lambda x: x[None, None], node)
            alone = eqx.tree_at(lambda n: n.entry, lone, jnp.zeros((1, 1)))
            rho = float(adaptive._least(model, alone, label[None])[0])
            found.append(Reached(attempts, float(node.entry), rho))
            continue
        spent += 1
        ticks = solve.ladder.ticks(node.rung.level)
        begin = int(node.rung.position) / solve.ladder.whole
        end = (int(node.rung.position) + int(ticks)) / solve.ladder.whole
        same, longer, again = children(node)
        after = {
            name: child
            for name, child in zip(OUTCOMES, (same, longer, again), strict=True)
            if float(child.entry) < limit
        }
        entries = [float(x.entry) for x in (same, longer, again)]
        # The outcome of the centre adds nothing to its entry; the next one does.
        away = sorted(entries)[1]
        for name, child in after.items():
            step = Attempt(begin, end, name, away)
            stack.append((child, (*attempts, step)))
    if stack:
        raise ValueError(f"More than {most} attempts: give --most, or another image.")
    return sorted(found, key=lambda path: path.entry)


def figure(found: list[Reached], radius: float, title: str) -> Any:
    """Left the steps of each path; right its distances, and the radius."""
    drawn = new_figure(8.6, 1.6 + 0.46 * len(found))
    left, right = drawn.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    handles: dict[str, Any] = {}
    for row, path in enumerate(found):
        for step in path.attempts:
            rejected = step.outcome == "rejected"
            name = "own step" if row == 0 else "other step"
            colour = COLOURS[0 if row == 0 else 5]
            height, line = float(row), "-"
            if rejected:  # above, the longer the higher
                name, colour, line = "rejected step", COLOURS[1], ":"
                height -= 0.18 + 0.18 * (step.end - step.begin)
            (drawn_line,) = left.plot(
                [step.begin, step.end],
                [height, height],
                f"|{line}",
                color=colour,
                linewidth=1.2 if rejected else 2.2,
                markersize=6 if rejected else 10,
            )
            handles.setdefault(name, drawn_line)
            if row == 0:
                place = step.begin + 0.5 * (step.end - step.begin)
                box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
                how: dict[str, Any] = {"ha": "center", "va": "center", "bbox": box}
                left.text(place, height, f"{step.away:.2g}", fontsize=8, **how)
        top = max(path.entry, path.rho)
        (entry,) = right.plot(path.entry, row, "|", color=COLOURS[1], markersize=11)
        (rho,) = right.plot(path.rho, row, "o", color=COLOURS[2], markersize=5)
        (ring,) = right.plot(top, row, "o", color=INK, markersize=10, fillstyle="none")
        handles |= {"entry": entry, "ρ": rho, "the larger of both": ring}
    line = right.axvline(radius, color=INK, linewidth=1, linestyle="--")
    handles[f"r* = {radius:.3f}"] = line
    left.set_xlabel("time, as a share of the interval")
    right.set_xlabel("L2 distance from the image")
    left.set_ylabel("paths that the ball can reach")
    left.set_ylim(len(found) - 0.6, -0.6)
    left.set_yticks([])
    right.set_xlim(left=min(0.0, -0.02 * radius))
    left.set_title(title, fontsize=10, loc="left")
    for axes in (left, right):
        tidy(axes)
    legend(drawn, handles)
    return drawn


def main(args: Args) -> None:
    model = jnode.load(args.run_dir)
    if args.tolerance is not None:
        tolerances = {"rtol": args.tolerance, "atol": args.tolerance}
        model = model.with_solver(dataclasses.replace(model.solver, **tolerances))
    test = data.load("mnist", split="test")
    images = data.to_float(jnp.asarray(test.images[args.index : args.index + 1]))
    with jax.numpy_dtype_promotion("standard"):
        resolved, bounds = jnode.resolve(model)
        own = reachable(resolved, bounds, images[0], 1e-30, args.most)
        found = reachable(resolved, bounds, images[0], own[0].rho, args.most)
    radius = min(max(path.entry, path.rho) for path in found)
    certified = float(certify.radius(model, images)[0])
    print(f"{len(found)} paths; {radius:.4f} by enumeration, {certified:.4f} certified")
    for path in found:
        grid = [f"{a.begin:g}-{a.end:g} {a.outcome}" for a in path.attempts]
        print(f"entry {path.entry:.4f}, rho {path.rho:.4f}: {'; '.join(grid)}")
    title = f"Test image {args.index}, {model.solver}"
    (RESULTS / "adaptive.png").write_bytes(to_png(figure(found, radius, title)))
    assert certified <= radius * (1 + 1e-4), "merging only loses"
    assert np.isfinite(radius)


if __name__ == "__main__":
    run(lambda: main(tyro.cli(Args, description=__doc__)))
