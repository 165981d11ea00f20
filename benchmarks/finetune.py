"""Fine-tunes a certified model and tries to refute what is certified of it afterwards.

    python benchmarks/finetune.py RUN

Takes the trained model of a run folder, as `jnode.load` gives it and, once more, with
its weights plain, as `jnode.resolve` does; takes 30 steps of AdamW with weight decay at
plain cross-entropy; then searches in float64 for a pair of images that the features
part by more than the certified constant, and attacks 1,000 images within their
certified radii. Writes benchmarks/results/finetune.json and .md.
"""

import dataclasses
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro

import jnode
from jnode import data
from jnode._process import run, versions
from jnode.certify import certified_radii, lipschitz_lower_bound
from jnode.train import RunDir

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Args:
    """What to fine-tune and how hard to try."""

    run_dir: tyro.conf.Positional[str]
    """The folder of a trained run."""

    steps: int = 30
    """Steps of fine-tuning."""

    learning_rate: float = 1e-3
    """Of AdamW."""

    weight_decay: float = 0.1
    """Of AdamW, on every array."""

    examples: int = 1000
    """Test images that are certified and attacked."""

    radius: float = 0.5
    """The L2 radius at which certified accuracy is compared."""

    search: int = 300
    """Steps of each search for a large Lipschitz quotient; 16 of them are made."""


def finetune(model, train, args: Args):
    """The model after some steps of AdamW that decay all that it holds."""
    optimizer = optax.adamw(args.learning_rate, weight_decay=args.weight_decay)
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, images, labels):
        def loss(model):
            logits = jnode.batched(model)(images)
            entropy = optax.softmax_cross_entropy_with_integer_labels
            return entropy(4 * logits, labels).mean()

        grads = eqx.filter_grad(loss)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state_ = optimizer.update(grads, state, params)
        return eqx.apply_updates(model, updates), state_

    batches = data.batches(train, 128, seed=1, epoch=0)
    for _, (images, labels) in zip(range(args.steps), batches, strict=False):
        images = data.to_float(jnp.asarray(images))
        model, state = step(model, state, images, jnp.asarray(labels))
    return model


def refuted(model, images, labels, args: Args) -> dict:
    """What is certified of the model, and what searches found against it."""
    bound = float(model.lipschitz())
    radii = certified_radii(model, images, labels)
    plain = model.bake()

    @jax.jit
    def search(arrays, starts, keys):
        whole = eqx.combine(arrays, eqx.filter(plain, eqx.is_array, inverse=True))
        one = lambda x, key: lipschitz_lower_bound(
            whole.embed, x, key=key, steps=args.search, rate=0.2
        )
        return jnp.max(jax.vmap(one)(starts, keys))

    with jax.enable_x64(True):
        exact = jax.tree.map(
            lambda w: w.astype(jnp.float64), eqx.filter(plain, eqx.is_array)
        )
        starts = jnp.asarray(images[:16], jnp.float64)
        found = float(search(exact, starts, jr.split(jr.key(0), len(starts))))
    return {
        "certified_upper_bound": bound,
        "empirical_lower_bound": found,
        "clean_accuracy": float(np.mean(radii >= 0)),
        "certified_accuracy": float(np.mean(radii >= args.radius)),
        "certified_balls": int(np.sum(radii > 0)),
        "false_balls": false_balls(plain, images, radii),
    }


def false_balls(model, images, radii) -> int:
    """How many certified balls hold an image of another class, by L2 PGD in each."""
    logits = jnode.batched(model)

    @eqx.filter_jit
    def attack(x, radii, key):
        label = jnp.argmax(logits(x), axis=1)
        flat = lambda d: d.reshape(len(d), -1)
        fit = lambda d: (
            d
            * (radii / jnp.maximum(jnp.linalg.norm(flat(d), axis=1), 1e-12)).reshape(
                -1, 1, 1, 1
            )
        )

        def margin(d):
            z = logits(x + d)
            own = jnp.take_along_axis(z, label[:, None], axis=1)[:, 0]
            others = jnp.where(jax.nn.one_hot(label, z.shape[1]) > 0, -jnp.inf, z)
            margins = own - jnp.max(others, axis=1)
            return jnp.sum(margins), margins

        def body(_, carry):
            d, least = carry
            slope, margins = jax.grad(margin, has_aux=True)(d)
            # On the sphere: the ball's edge is where another class is nearest.
            length = jnp.linalg.norm(flat(slope), axis=1).reshape(-1, 1, 1, 1)
            d = fit(d - 0.2 * radii.reshape(-1, 1, 1, 1) * slope / (length + 1e-12))
            return d, jnp.minimum(least, margins)

        start = fit(jr.normal(key, x.shape))
        d, least = jax.lax.fori_loop(0, 60, body, (start, jnp.full(len(x), jnp.inf)))
        return jnp.minimum(least, margin(d)[1])

    chosen = np.flatnonzero(radii > 0)
    wrong = 0
    for k in range(0, len(chosen), 100):
        part = np.resize(chosen[k : k + 100], 100)
        budget = jnp.asarray(0.999 * radii[part], jnp.float32)
        least = attack(jnp.asarray(images[part], jnp.float32), budget, jr.key(k))
        wrong += int(np.sum(np.asarray(least)[: len(chosen[k : k + 100])] < 0))
    return wrong


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    config, _ = RunDir(args.run_dir).read_config()
    train, test = (data.load(config.data.name, split=s) for s in ("train", "test"))
    test = test.take(args.examples)
    images = np.asarray(data.to_float(jnp.asarray(test.images)))
    model = jnode.load(args.run_dir)
    rows = {"as it was trained": refuted(model, images, test.labels, args)}
    for name, start in (
        ("fine-tuned as loaded", model),
        ("fine-tuned as resolved", jnode.resolve(model)[0]),
    ):
        tuned = finetune(start, train, args)
        rows[name] = refuted(tuned, images, test.labels, args)
    summary = {"args": dataclasses.asdict(args), "versions": versions(), "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "finetune.json").write_text(json.dumps(summary, indent=1) + "\n")
    text = table(summary)
    (RESULTS / "finetune.md").write_text(text)
    print(text)
    if any(
        row["false_balls"]
        or row["empirical_lower_bound"] > row["certified_upper_bound"]
        for row in rows.values()
    ):
        raise SystemExit(1)


def table(summary) -> str:
    """Markdown."""
    args = summary["args"]
    lines = [
        f"{args['steps']} steps of AdamW, learning rate {args['learning_rate']:g}, "
        f"weight decay {args['weight_decay']:g} on every array; "
        f"{args['examples']} test images. L is from pixels to features: the certified "
        "upper bound, and what a search in float64 found. A false ball is a certified "
        "one in which an attack found another class.",
        "",
        "`python benchmarks/finetune.py RUN`",
        "",
        "| model | L at most | L at least | clean % "
        f"| certified % at {args['radius']:g} | certified balls | false balls |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in summary["rows"].items():
        lines.append(
            f"| {name} | {row['certified_upper_bound']:.4f} "
            f"| {row['empirical_lower_bound']:.4f} "
            f"| {100 * row['clean_accuracy']:.1f} "
            f"| {100 * row['certified_accuracy']:.1f} "
            f"| {row['certified_balls']} | {row['false_balls']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main)
