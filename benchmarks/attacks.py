"""Are our attacks as strong as others', and how fast: python benchmarks/attacks.py.

Needs the other libraries (CONTRIBUTING.md), and MNIST and CIFAR-10 for TFDS. Trains two
small classifiers, carries their weights into PyTorch, and attacks test images of each
with our attacks, torchattacks' and foolbox's. Then times the standard ensemble and PGD
side by side. Writes benchmarks/results/attacks.json and .md, row by row, and goes on
from the rows that are there: delete the file to measure all of them again.
"""

import dataclasses
import json
import time
from pathlib import Path

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchattacks
import tyro
from attacks_table import table
from attacks_torch import in_torch

import jnode
from jnode import attacks, data
from jnode._process import run, versions
from jnode.train import DataConfig, LossConfig, TrainConfig, train

RESULTS = Path(__file__).parent / "results"

MODELS = {
    # A gradient flow of Cayley convolutions, certified.
    "mnist": TrainConfig(
        data=DataConfig("mnist", pad=1, num_train=10_000),
        model=jnode.ModelConfig(
            "gradient_flow", features=16, hidden=16, patch=4, lipschitz=8.0
        ),
        solver=jnode.Solver("euler", steps=4),
        loss=LossConfig("margin", rho=0.7, logit_scale=8.0),
        epochs=2,
        learning_rate=5e-3,
    ),
    # An ordinary neural ODE, on few images.
    "cifar10": TrainConfig(
        data=DataConfig("cifar10", flip=True, pad=2, num_train=10_000),
        model=jnode.ModelConfig(
            "free", features=48, hidden=16, patch=4, padding="circular"
        ),
        solver=jnode.Solver("rk4", steps=1),
        loss=LossConfig("natural"),
        epochs=3,
        learning_rate=5e-3,
    ),
}
# So that robust accuracy is in the middle, where attacks differ.
EPSILON = {
    "mnist": {"linf": 0.1, "l2": 1.0, "l1": 6.0},
    "cifar10": {"linf": 2 / 255, "l2": 0.25, "l1": 4.0},
}
TOLERANCE = 1e-4
"""By how much, relatively, an image of a library may exceed the budget."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Compares attacks with torchattacks' and foolbox's."""

    num_examples: int = 250
    """Test images of each data set for the agreement."""

    num_timed: int = 250
    """Test images of each data set for the timing."""

    queries: int = 1000
    """Queries of Square, in the agreement."""

    fab_steps: int = 30
    """Steps of FAB-T towards each class, in the agreement."""

    batch_size: int = 100
    """Images at a time. Samples still robust are gathered into full batches, so
    small ones waste less."""

    library_batch_size: int = 500
    """Images at a time for the other libraries; PyTorch is quickest with many."""

    threads: int = 2
    """Of PyTorch. On a busy machine two are slower: each waits for the other."""

    repeats: int = 2
    """Timed runs of each contestant, in turn; the median counts."""

    runs: str = "runs/attacks"
    """Where the trained models are kept."""

    part: tuple[str, ...] = ("agreement", "speed")
    """What to measure."""

    model: tuple[str, ...] = ("mnist", "cifar10")
    """Of which models."""

    norm: tuple[str, ...] = ("linf", "l2", "l1")
    """In which norms."""

    attack: tuple[str, ...] = ("pgd-40", "apgd-ce", "apgd-t", "fab-t", "square")
    """The agreement of which attacks."""


class Problem:
    """A trained model in JAX and in PyTorch, and its test images."""

    def __init__(self, name: str, args: Args, n: int):
        folder = Path(args.runs) / name
        if not (folder / "model.eqx").is_file():
            train(MODELS[name], folder, overwrite=True)
        model = jnode.load(folder)
        self.args = args
        self.model = jnode.batched(model.bake())
        self.compiled = jax.jit(lambda x: self.model(x))
        self.torch_model = in_torch(model)
        test = data.load(name, split="test").take(n)
        self.images = np.asarray(data.to_float(test.images))
        self.labels = test.labels.astype(np.int64)

    def ours(self, trials, seed: int = 0) -> float:
        """Robust accuracy under our attacks, in order."""
        found = attacks.run(
            self.model,
            self.images,
            self.labels,
            trials,
            key=jax.random.key(seed),
            batch_size=self.args.batch_size,
            progress=False,
        )
        return found.robust_accuracy

    def theirs(self, attack, budget) -> float:
        """Robust accuracy under a torchattacks attack: clean and attacked both right.

        Only images that are classified rightly are handed over, as there.
        """
        robust = 0
        for x, y in self.batches():
            x, y = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y)
            right = self.torch_model(x).argmax(1) == y
            x, y = x[right], y[right]
            found = attack(x, y)
            order = {"linf": np.inf, "l2": 2, "l1": 1}[budget.norm]
            away = torch.linalg.vector_norm((found - x).flatten(1), order, dim=1)
            outside = away > float(budget.epsilon) * (1 + TOLERANCE)
            given = self.torch_model(found).argmax(1)
            robust += int((outside | (given == y)).sum())
        return robust / len(self.labels)

    def foolbox(self, attack, budget) -> float:
        """Robust accuracy under a foolbox attack on the same JAX model."""
        # Compiled, as a user of foolbox would.
        model = foolbox.JAXModel(self.compiled, bounds=(0, 1))
        robust = 0
        for x, y in self.batches():
            x, y = jnp.asarray(x), jnp.asarray(y.astype(np.int32))
            _, _, success = attack(model, x, y, epsilons=float(budget.epsilon))
            right = jnp.argmax(model(x), axis=1) == y
            robust += int(jnp.sum(right & ~success))
        return robust / len(self.labels)

    def batches(self):
        size = self.args.library_batch_size
        for i in range(0, len(self.labels), size):
            yield self.images[i : i + size], self.labels[i : i + size]

    def difference(self) -> float:
        """The largest difference between both models' logits."""
        x = self.images[: self.args.batch_size]
        ours = np.asarray(self.model(jnp.asarray(x)))
        x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
        return float(np.abs(ours - self.torch_model(x).detach().numpy()).max())


# Attacks whose one random start matters are repeated; means are compared.
SEEDS = {"pgd-40": 3, "apgd-ce": 3}


def pairs(p: Problem, budget: attacks.Budget) -> list[tuple]:
    """In this norm: the name, ours, the library's name, and the library's attack."""
    library = foolbox.attacks
    # foolbox's step is given as a share of the budget: ours.
    steps = {"rel_stepsize": 2.5 / 40, "steps": 40}
    pgd = attacks.PGD(steps=40)
    if budget.norm == "l1":
        dense = library.L1ProjectedGradientDescentAttack(**steps)
        sparse = library.SparseL1DescentAttack(**steps, random_start=True)
        return [
            ("pgd-40", pgd, "foolbox, PGD", dense),
            ("pgd-40", pgd, "foolbox, SparseL1Descent", sparse),
        ]
    foolbox_pgd = {
        "linf": library.LinfProjectedGradientDescentAttack,
        "l2": library.L2ProjectedGradientDescentAttack,
    }[budget.norm](**steps)
    net, fab_steps, queries = p.torch_model, p.args.fab_steps, p.args.queries
    both = {
        "eps": float(budget.epsilon),
        "norm": {"linf": "Linf", "l2": "L2"}[budget.norm],
        "seed": 0,
    }
    found = {
        "apgd-ce": (
            attacks.APGDCE(),
            torchattacks.APGD(net, loss="ce", steps=100, **both),
        ),
        "apgd-t": (
            attacks.APGDT(),
            torchattacks.APGDT(net, n_classes=10, steps=100, **both),
        ),
        "fab-t": (
            attacks.FABT(steps=fab_steps),
            torchattacks.FAB(
                net, multi_targeted=True, n_classes=10, steps=fab_steps, **both
            ),
        ),
        "square": (
            attacks.Square(steps=queries),
            torchattacks.Square(net, n_queries=queries, **both),
        ),
    }
    rows = [(name, *both, "torchattacks") for name, both in found.items()]
    return [
        ("pgd-40", pgd, "foolbox, PGD", foolbox_pgd),
        *((name, ours, library, other) for name, ours, other, library in rows),
    ]


def agreement(args: Args, done: set):
    """Yields one row for each model, norm and attack that is not done."""
    for name in args.model:
        p = Problem(name, args, args.num_examples)
        clean = p.ours([])
        for norm in args.norm:
            budget = attacks.Budget(norm, EPSILON[name][norm])
            for attack, ours, library, other in pairs(p, budget):
                if (name, norm, attack, library) in done or attack not in args.attack:
                    continue
                seeds = range(SEEDS.get(attack, 1))
                judge = p.foolbox if "foolbox" in library else p.theirs
                start = time.process_time()
                mine = [p.ours([(ours, budget)], seed) for seed in seeds]
                middle = time.process_time()
                theirs = []
                for seed in seeds:
                    other.seed = seed  # foolbox knows none, and draws on
                    theirs.append(judge(other, budget))
                yield {
                    "model": name,
                    "clean": clean,
                    "norm": norm,
                    "epsilon": EPSILON[name][norm],
                    "logits_differ": p.difference(),
                    "attack": attack,
                    "library": library,
                    "ours": float(np.mean(mine)),
                    "theirs": float(np.mean(theirs)),
                    "seeds": {"ours": mine, "theirs": theirs},
                    "cpu_seconds": [middle - start, time.process_time() - middle],
                }


def speed(args: Args, done: set):
    """Yields one row for each model and contest that is not done: seconds of CPU in
    turn, and their ratio."""
    for name in args.model:
        p = Problem(name, args, args.num_timed)
        budget = attacks.Budget("linf", EPSILON[name]["linf"])
        eps = float(budget.epsilon)
        ensemble = torchattacks.AutoAttack(
            p.torch_model, norm="Linf", eps=eps, version="standard", seed=0
        )
        # torchattacks' ensemble takes 10 steps; the published one takes 100, as ours.
        for part in ensemble._autoattack.attacks:
            part.steps = 100
        _, pgd, library, theirs = pairs(p, budget)[0]
        contests = {
            "standard ensemble": (
                "torchattacks",
                lambda: p.ours(attacks.autoattack(budget)),
                lambda: p.theirs(ensemble, budget),
            ),
            "pgd-40": (
                library,
                lambda: p.ours([(pgd, budget)]),
                lambda: p.foolbox(theirs, budget),
            ),
        }
        for contest, (library, *both) in contests.items():
            if (name, contest) in done:
                continue
            seconds, first, accuracy = ([], []), [], []
            for call in both:  # compiles
                start = time.process_time()
                accuracy.append(call())
                first.append(time.process_time() - start)
            for _ in range(args.repeats):
                for times, call in zip(seconds, both, strict=True):
                    start = time.process_time()
                    call()
                    times.append(time.process_time() - start)
            yield {
                "model": name,
                "contest": contest,
                "library": library,
                "ours": accuracy[0],
                "theirs": accuracy[1],
                "cpu_seconds": [float(np.median(times)) for times in seconds],
                "first_cpu_seconds": first,
                "ratio": float(np.median(np.divide(seconds[1], seconds[0]))),
            }


PARTS = {
    "agreement": (agreement, ("model", "norm", "attack", "library")),
    "speed": (speed, ("model", "contest")),
}


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    torch.set_num_threads(args.threads)
    path = RESULTS / "attacks.json"
    RESULTS.mkdir(exist_ok=True)
    old = json.loads(path.read_text()) if path.is_file() else {}
    summary = {
        # But for the folder, which is of this machine.
        "args": {k: v for k, v in dataclasses.asdict(args).items() if k != "runs"},
        "versions": versions(),
        "torch": torch.__version__,
        "torchattacks": torchattacks.__version__,
        "foolbox": foolbox.__version__,
        **{part: old.get(part, []) for part in PARTS},
    }
    for part in args.part:
        measure, keys = PARTS[part]
        done = {tuple(row[key] for key in keys) for row in summary[part]}
        for row in measure(args, done):
            print(row, flush=True)
            summary[part].append(row)
            path.write_text(json.dumps(summary, indent=1) + "\n")
            (RESULTS / "attacks.md").write_text(table(summary))
    print(table(summary))


if __name__ == "__main__":
    run(main)
