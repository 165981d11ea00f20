"""Certified models judged by others: python benchmarks/second_opinion.py [NAME ...].

Of each model that comes with the package, on the first test images:

- `attack`: robust accuracy under our PGD in L2 and under foolbox's, of the same steps,
  beside certified accuracy;
- `verifier`: at how many images auto_LiRPA proves a radius of the unrolled net, whose
  steps of Euler's method are dense layers there, and at how many the certificate does;
- `smoothing`: certified accuracy of the same model under Gaussian noise (Cohen et al.,
  ICML 2019) at the same radii.

Needs the `peers` extra, MNIST or CIFAR-10 for TFDS and, for `verifier`, auto_LiRPA
(github.com/Verified-Intelligence/auto_LiRPA) on the path. Writes
benchmarks/results/second_opinion.json and .md, part by part.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from cards import label

import jnode
from jnode import attacks, certify, data
from jnode._process import run, versions
from jnode.models import shipped

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Args:
    """Judges certified models by foolbox, auto_LiRPA and randomized smoothing."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ("certified_mnist",)
    """Models that come with the package."""

    part: tuple[str, ...] = ("attack", "verifier", "smoothing")
    """What to do; what is left out is taken from the last results."""

    attacked: int = 1000
    """Test images to attack."""

    verified: int = 100
    """Test images to verify."""

    smoothed: int = 200
    """Test images to smooth."""

    samples: int = 2000
    """Noisy samples of each of them."""

    verified_radii: tuple[float, ...] = (0.02, 0.05, 0.1, 0.25)
    """L2 radii for the verifier."""

    data_dir: str | None = None
    """The TFDS folder; by default TFDS_DATA_DIR."""


class Problem:
    """A certified model, resolved, and test images with their certified radii."""

    def __init__(self, name: str, count: int, args: Args):
        self.model, bounds = jnode.resolve(jnode.pretrained(name))
        self.lipschitz = float(bounds.lipschitz)
        card = shipped.card(name)
        self.radii = tuple(row["radius"] for row in card["certified_accuracy"])
        test = data.load(card["dataset"], split="test", data_dir=args.data_dir)
        test = test.take(count)
        self.images = np.asarray(data.to_float(test.images))
        self.labels = test.labels.astype(np.int32)
        self.certified = certify.certified_radii(self.model, self.images, self.labels)

    def share(self, radius: float) -> float:
        """Certified accuracy."""
        return float(np.mean(self.certified >= radius))


def attack(name: str, args: Args) -> list[dict]:
    """Robust accuracy under PGD of 40 steps, ours and foolbox's, at each radius."""
    import foolbox

    p = Problem(name, args.attacked, args)
    batched = jnode.batched(p.model)
    # foolbox's step is given as a share of the budget: ours.
    other = foolbox.attacks.L2ProjectedGradientDescentAttack(
        rel_stepsize=2.5 / 40, steps=40
    )
    theirs_model = foolbox.JAXModel(jax.jit(lambda x: batched(x)), bounds=(0, 1))
    rows = []
    for radius in p.radii:
        ours = attacks.run(
            batched,
            p.images,
            p.labels,
            [(attacks.PGD(steps=40), attacks.Budget("l2", radius))],
            key=jax.random.key(0),
            progress=False,
        )
        robust = 0
        for i in range(0, len(p.labels), 500):
            x, y = (
                jnp.asarray(p.images[i : i + 500]),
                jnp.asarray(p.labels[i : i + 500]),
            )
            _, _, success = other(theirs_model, x, y, epsilons=radius)
            robust += int(
                jnp.sum((jnp.argmax(theirs_model(x), axis=1) == y) & ~success)
            )
        rows.append(
            {
                "radius": radius,
                "certified": p.share(radius),
                "ours": ours.robust_accuracy,
                "foolbox": robust / len(p.labels),
            }
        )
    return rows


def verifier(name: str, args: Args) -> list[dict]:
    """At what share of the images each proves that the right prediction cannot change.

    **Raises:** `ValueError` if the dense net's logits are not the model's.
    """
    import torch
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    p = Problem(name, args.verified, args)
    net, classes = dense_net(p.model), len(p.model.head.bias)
    flat = torch.from_numpy(p.images.reshape(len(p.images), -1).copy())
    with torch.no_grad():
        logits = net(flat).numpy()
    error = np.abs(logits - jax.vmap(p.model)(p.images)).max()
    if error > 1e-3:
        raise ValueError(f"the dense net differs by {error:g} from the model.")
    bounded = BoundedModule(net, flat[:1])
    rows = []
    for radius in args.verified_radii:
        begin, proven = time.perf_counter(), 0
        for x, y in zip(flat, p.labels, strict=True):
            # Differences between the logit of the label and each other one.
            rest = [c for c in range(classes) if c != y]
            c = torch.zeros(1, classes - 1, classes)
            c[0, :, int(y)] = 1
            c[0, torch.arange(classes - 1), rest] = -1
            ball = PerturbationLpNorm(norm=2, eps=radius)
            with torch.no_grad():
                low, _ = bounded.compute_bounds(
                    x=(BoundedTensor(x[None], ball),), C=c, method="backward"
                )
            proven += bool((low > 0).all())
        rows.append(
            {
                "radius": radius,
                "certified": p.share(radius),
                "verifier": proven / len(p.labels),
                "seconds": (time.perf_counter() - begin) / len(p.labels),
            }
        )
        print(rows[-1], flush=True)
    return rows


def dense_net(model):
    """A resolved certified model in PyTorch, each linear map a dense layer."""
    from torch import nn

    block = model.layers[-1]
    encode = [layer for layer in model.layers if layer is not block]

    def embed(image):
        for layer in encode:
            image = layer(image)
        return image

    fields = block.field.segments
    shape = jax.eval_shape(embed, jnp.zeros(model.image_shape)).shape

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lift = _affine(embed, model.image_shape)
            self.steps = nn.ModuleList(
                nn.ModuleList(_step(jax.tree.map(lambda x, k=k: x[k], fields), shape))
                for k in range(block.field.count)
            )
            self.head = _linear(model.head.rows(), model.head.bias)

        def forward(self, x):
            y = self.lift(x)
            for inner, outer in self.steps:
                y = y + outer(nn.functional.relu(inner(y)))
            return self.head(y)

    return Net().eval()


def _step(field, shape):
    # One Euler step of a gradient flow: y - h L W^T relu(W y + b).
    (weight,), (bias,) = field.weights, field.biases
    inner = _affine(lambda y: weight(y) + bias, shape)
    matrix = inner.weight.detach().numpy()
    return inner, _linear(-2.0 * matrix.T, np.zeros(len(matrix.T)))


def _affine(fn: Callable, shape: tuple[int, ...]):
    # The dense layer of an affine map of arrays of this shape.
    size = int(np.prod(shape))
    bias = fn(jnp.zeros(shape)).ravel()
    one = lambda e: fn(e.reshape(shape)).ravel() - bias
    columns = jax.lax.map(one, jnp.eye(size), batch_size=64)
    return _linear(columns.T, bias)


def _linear(matrix, bias):
    import torch

    layer = torch.nn.Linear(matrix.shape[1], matrix.shape[0])
    layer.weight.data = torch.from_numpy(np.array(matrix, np.float32))
    layer.bias.data = torch.from_numpy(np.array(bias, np.float32))
    return layer.requires_grad_(False)


def smoothing(name: str, args: Args) -> list[dict]:
    """Certified accuracy of the smoothed model, best of three noise levels a radius."""
    p = Problem(name, args.smoothed, args)
    rows = [{"radius": r, "certified": p.share(r), "smoothed": {}} for r in p.radii]
    for share in (0.25, 0.5, 1.0):
        sigma = share * p.radii[1]
        found = certify.smooth_certify(
            p.model,
            p.images,
            certify.Smoothing(sigma, n=args.samples),
            key=jax.random.key(0),
        )
        right = found.predictions == p.labels
        for row in rows:
            proven = right & (found.radii >= row["radius"])
            row["smoothed"][f"{sigma:.3g}"] = float(np.mean(proven))
    return rows


PARTS = {"attack": attack, "verifier": verifier, "smoothing": smoothing}


def table(results: dict) -> str:
    """Markdown, one table for each part."""

    def percent(x: float) -> str:
        return f"{100 * x:.1f}"

    text = []
    for name, parts in results.items():
        for part, entry in parts.items():
            rows, images = entry["rows"], entry["images"]
            if part == "attack":
                head = ["certified %", "PGD-40 %", "foolbox PGD-40 %"]
                cells = [[r["certified"], r["ours"], r["foolbox"]] for r in rows]
            elif part == "verifier":
                head = ["certified %", "auto_LiRPA (CROWN) %"]
                cells = [[r["certified"], r["verifier"]] for r in rows]
            else:
                levels = list(rows[0]["smoothed"])
                head = ["certified %", *(f"smoothed, σ {s}, %" for s in levels)]
                cells = [[r["certified"], *r["smoothed"].values()] for r in rows]
            text.append(f"| `{name}`, {images:,} images, L2 | {' | '.join(head)} |")
            text.append("| --- |" + " ---: |" * len(head))
            for r, row in zip(rows, cells, strict=True):
                values = " | ".join(map(percent, row))
                text.append(f"| {label(r['radius'])} | {values} |")
            text.append("")
    return "\n".join(text)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    path = RESULTS / "second_opinion.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    counts = {
        "attack": args.attacked,
        "verifier": args.verified,
        "smoothing": args.smoothed,
    }
    for name in args.names:
        for part in args.part:
            begin = time.perf_counter()
            rows = PARTS[part](name, args)
            results.setdefault(name, {})[part] = {
                "images": counts[part],
                "rows": rows,
                "seconds": time.perf_counter() - begin,
                "args": dataclasses.asdict(args) | {"data_dir": None},
                "versions": versions(),
            }
            path.write_text(json.dumps(results, indent=1) + "\n")
            (RESULTS / "second_opinion.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    run(main)
