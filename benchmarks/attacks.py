"""Are our attacks as strong as others', and how fast: python benchmarks/attacks.py.

Needs the other libraries (CONTRIBUTING.md), and MNIST and CIFAR-10 for TFDS. Trains two
small classifiers, carries their weights into PyTorch, and attacks 1,000 test images of
each with our attacks, torchattacks' and foolbox's. Then times the standard ensemble and
PGD side by side. Writes benchmarks/results/attacks.json and .md, row by row.
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
        data=DataConfig("mnist", pad=1),
        model=jnode.ModelConfig(
            "gradient_flow", features=16, hidden=16, patch=4, lipschitz=8.0
        ),
        solver=jnode.Solver("euler", steps=4),
        loss=LossConfig("margin", rho=0.7, logit_scale=8.0),
        epochs=3,
        learning_rate=5e-3,
    ),
    # An ordinary neural ODE.
    "cifar10": TrainConfig(
        data=DataConfig("cifar10", flip=True, pad=2),
        model=jnode.ModelConfig(
            "free", features=48, hidden=16, patch=4, padding="circular"
        ),
        solver=jnode.Solver("rk4", steps=1),
        loss=LossConfig("natural"),
        epochs=6,
        learning_rate=5e-3,
    ),
}
# So that robust accuracy is in the middle, where attacks differ.
EPSILON = {"mnist": 0.1, "cifar10": 2 / 255}


@dataclasses.dataclass(frozen=True)
class Args:
    """Compares attacks with torchattacks' and foolbox's."""

    num_examples: int = 1000
    """Test images of each data set for the agreement."""

    num_timed: int = 250
    """Test images of each data set for the timing."""

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
    """What to do; what is left out is taken from the last results."""

    model: tuple[str, ...] = ("mnist", "cifar10")
    """Of which models; likewise."""

    attack: tuple[str, ...] = ("pgd-40", "apgd-ce", "apgd-t", "fab-t", "square")
    """Agreement of which attacks; likewise."""


class Problem:
    """A trained model in JAX and in PyTorch, and its test images."""

    def __init__(self, name: str, args: Args, n: int):
        folder = Path(args.runs) / name
        if not (folder / "model.eqx").is_file():
            train(MODELS[name], folder, overwrite=True)
        model = jnode.load(folder)
        self.epsilon = EPSILON[name]
        self.budget = attacks.Budget("linf", self.epsilon)
        self.batch_size, self.theirs_size = args.batch_size, args.library_batch_size
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
            batch_size=self.batch_size,
            progress=False,
        )
        return found.robust_accuracy

    def theirs(self, attack) -> float:
        """Robust accuracy under a torchattacks attack: clean and attacked both right.

        Only images that are classified rightly are handed over, as there.
        """
        robust = 0
        for x, y in self.batches():
            x, y = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y)
            right = self.torch_model(x).argmax(1) == y
            x, y = x[right], y[right]
            robust += int((self.torch_model(attack(x, y)).argmax(1) == y).sum())
        return robust / len(self.labels)

    def foolbox(self, attack) -> float:
        """Robust accuracy under a foolbox attack on the same JAX model."""
        # Compiled, as a user of foolbox would.
        model = foolbox.JAXModel(self.compiled, bounds=(0, 1))
        robust = 0
        for x, y in self.batches():
            x, y = jnp.asarray(x), jnp.asarray(y.astype(np.int32))
            _, _, success = attack(model, x, y, epsilons=self.epsilon)
            right = jnp.argmax(model(x), axis=1) == y
            robust += int(jnp.sum(right & ~success))
        return robust / len(self.labels)

    def batches(self):
        for i in range(0, len(self.labels), self.theirs_size):
            stop = i + self.theirs_size
            yield self.images[i:stop], self.labels[i:stop]

    def difference(self) -> float:
        """The largest difference between both models' logits."""
        x = self.images[: self.batch_size]
        ours = np.asarray(self.model(jnp.asarray(x)))
        x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
        return float(np.abs(ours - self.torch_model(x).detach().numpy()).max())


# Attacks whose one random start matters are repeated; means are compared.
SEEDS = {"pgd-40": 3, "apgd-ce": 3}


def pairs(p: Problem) -> dict[str, tuple]:
    """Of each attack: ours, the library's name, and the library's."""
    eps, net = p.epsilon, p.torch_model
    both = dict(eps=eps, norm="Linf", steps=100, seed=0)
    # foolbox's step is given as a share of the budget: ours.
    pgd = foolbox.attacks.LinfProjectedGradientDescentAttack(
        rel_stepsize=2.5 / 40, steps=40
    )
    return {
        "pgd-40": (attacks.PGD(steps=40), "foolbox", pgd),
        "apgd-ce": (
            attacks.APGDCE(),
            "torchattacks",
            torchattacks.APGD(net, loss="ce", **both),
        ),
        "apgd-t": (
            attacks.APGDT(),
            "torchattacks",
            torchattacks.APGDT(net, n_classes=10, **both),
        ),
        "fab-t": (
            attacks.FABT(),
            "torchattacks",
            torchattacks.FAB(net, multi_targeted=True, n_classes=10, **both),
        ),
        "square": (
            attacks.Square(),
            "torchattacks",
            torchattacks.Square(net, eps=eps, n_queries=5000, seed=0),
        ),
    }


def agreement(args: Args):
    """Yields one row for each model and attack."""
    for name in args.model:
        p = Problem(name, args, args.num_examples)
        clean = p.ours([])
        for attack, (ours, library, other) in pairs(p).items():
            if attack not in args.attack:
                continue
            seeds = range(SEEDS.get(attack, 1))
            judge = p.foolbox if library == "foolbox" else p.theirs
            start = time.perf_counter()
            mine = [p.ours([(ours, p.budget)], seed) for seed in seeds]
            middle = time.perf_counter()
            theirs = []
            for seed in seeds:
                other.seed = seed  # foolbox knows none, and draws on
                theirs.append(judge(other))
            row = {
                "model": name,
                "clean": clean,
                "epsilon": p.epsilon,
                "logits_differ": p.difference(),
                "attack": attack,
                "library": library,
                "ours": float(np.mean(mine)),
                "theirs": float(np.mean(theirs)),
                "seeds": {"ours": mine, "theirs": theirs},
                "seconds": [middle - start, time.perf_counter() - middle],
            }
            print(row, flush=True)
            yield row


def speed(args: Args):
    """Yields one row for each model and contest: seconds in turn, and their ratio."""
    for name in args.model:
        p = Problem(name, args, args.num_timed)
        ensemble = torchattacks.AutoAttack(
            p.torch_model, norm="Linf", eps=p.epsilon, version="standard", seed=0
        )
        # torchattacks' ensemble takes 10 steps; the published one takes 100, as ours.
        for part in ensemble._autoattack.attacks:
            part.steps = 100
        ours, _, theirs = pairs(p)["pgd-40"]
        contests = {
            "standard ensemble": (
                "torchattacks",
                lambda: p.ours(attacks.autoattack(p.budget)),
                lambda: p.theirs(ensemble),
            ),
            "pgd-40": (
                "foolbox",
                lambda: p.ours([(ours, p.budget)]),
                lambda: p.foolbox(theirs),
            ),
        }
        for contest, (library, *both) in contests.items():
            seconds, first, accuracy = ([], []), [], []
            for call in both:  # compiles
                start = time.perf_counter()
                accuracy.append(call())
                first.append(time.perf_counter() - start)
            for _ in range(args.repeats):
                for times, call in zip(seconds, both, strict=True):
                    start = time.perf_counter()
                    call()
                    times.append(time.perf_counter() - start)
            medians = [float(np.median(times)) for times in seconds]
            row = {
                "model": name,
                "contest": contest,
                "library": library,
                "ours": accuracy[0],
                "theirs": accuracy[1],
                "seconds": medians,
                "first_seconds": first,
                "ratio": float(np.median(np.divide(seconds[1], seconds[0]))),
            }
            print(row, flush=True)
            yield row


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    torch.set_num_threads(args.threads)
    path = RESULTS / "attacks.json"
    RESULTS.mkdir(exist_ok=True)
    old = json.loads(path.read_text()) if path.is_file() else {}
    summary = {
        "args": dataclasses.asdict(args),
        "versions": versions(),
        "torch": torch.__version__,
        "torchattacks": torchattacks.__version__,
        "foolbox": foolbox.__version__,
        "agreement": old.get("agreement", []),
        "speed": old.get("speed", []),
    }
    for part in args.part:
        again = args.attack if part == "agreement" else (None,)
        summary[part] = [
            row
            for row in summary[part]
            if row["model"] not in args.model or row.get("attack") not in again
        ]
        for row in {"agreement": agreement, "speed": speed}[part](args):
            summary[part].append(row)
            path.write_text(json.dumps(summary, indent=1) + "\n")
            (RESULTS / "attacks.md").write_text(table(summary))
    print(table(summary))


if __name__ == "__main__":
    run(main)
