"""What an evaluation will cost, from the time of one batch, and how far it is."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from jnode.attacks.base import AbstractAttack, loss_and_gradient
from jnode.models import ODEClassifier
from jnode.models.batched import batched


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds that one batch takes: its logits, their gradient, and one compilation.

    `sources` tells how much more an attack takes that goes through another model. The
    default holds no seconds, only ratios, which a progress bar can use.
    """

    forward: float = 1.0
    gradient: float = 3.0
    compilation: float = 0.0
    sources: Mapping[str, float] = dataclasses.field(default_factory=dict)
    batch_size: int = 250

    def of(self, attack: AbstractAttack) -> float:
        """Seconds of one batch under an attack that stops for no sample."""
        forwards, gradients = evaluations(attack)
        ratio = self.sources.get(attack.via, 1.0)
        return forwards * self.forward + ratio * gradients * self.gradient


def evaluations(attack: AbstractAttack) -> tuple[int, int]:
    """How many times an attack asks for logits and for gradients, at most.

    The judgement of what it found is one more call for logits.
    """
    logits, gradients = attack.evaluations()
    return logits + 1, gradients


def cost_of(
    model: ODEClassifier,
    images: Float[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, " n"],
    sources: Mapping[str, Callable],
    batch_size: int,
) -> Cost:
    """Times one batch: each part is compiled and run once, and then timed.

    **Arguments:** the model; images and labels; the `sources` of transferred attacks,
    whose cost is taken to grow with their evaluations of the vector field; images at a
    time.
    """
    x, y = jnp.asarray(images[:batch_size]), jnp.asarray(labels[:batch_size])
    whole = batched(model)
    forward, _ = _seconds(_forward, whole, x)
    gradient, compilation = _seconds(_gradient, whole, x, y)
    own = _nfe(model, x)
    ratios = {}
    for via, source in sources.items():
        inner = getattr(source, "model", source)
        if isinstance(inner, ODEClassifier):
            ratios[via] = max(_nfe(inner, x) / own, 0.1)
        else:
            ratios[via] = 0.1  # no solve at all
    return Cost(forward, gradient, compilation, ratios, len(x))


@eqx.filter_jit
def _forward(model, images):
    return model(images)


@eqx.filter_jit
def _gradient(model, images, labels):
    return loss_and_gradient(model, images, labels)


def _nfe(model, images) -> float:
    if not model.solver.adaptive:
        return float(model.solver.steps * model.solver.stages)
    return float(jnp.max(batched(model).solution(images[:8]).stats["nfe"]))


def _seconds(function, *arguments) -> tuple[float, float]:
    """Of a run, and of the compilation before it."""
    took = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        took.append(time.perf_counter() - start)
    return min(took[1:]), max(took[0] - min(took[1:]), 0.0)


def estimate(
    attacks: Sequence[AbstractAttack], cost: Cost, num_examples: int
) -> tuple[float, float]:
    """Seconds of all attacks on so many images: work, and compilation.

    The work is the most that it can be: samples that are broken are attacked no more.
    One program is compiled for each kind of attack, norm, number of steps and source.
    """
    batches = -(-num_examples // cost.batch_size)
    work = batches * sum(cost.of(attack) for attack in attacks)
    return work, len(programs(attacks)) * cost.compilation


def programs(attacks: Sequence[AbstractAttack]) -> set[tuple]:
    """What tells attacks apart that are compiled to programs of their own."""
    return {(a.name, a.norm, int(a.steps), a.restarts, a.via) for a in attacks}


def minutes(seconds: float) -> str:
    """For people: `40 seconds`, `12 minutes`, `3.5 hours`."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} seconds"
    if seconds < 5400:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"


def announce(
    protocol: str,
    attacks: Sequence[AbstractAttack],
    n: int,
    cost: Cost,
    expected: tuple[float, float],
) -> None:
    """Says what a protocol will do and cost, before it starts."""
    work, compiling = expected
    print(
        f"Protocol {protocol}: {len(attacks)} attacks on {n} images take at most "
        f"{minutes(work)}, and some {minutes(compiling)} for compilation (a batch of "
        f"{cost.batch_size} takes {cost.forward:.3f} s, its gradient "
        f"{cost.gradient:.3f} s); samples that are broken are attacked no more.",
        flush=True,
    )


@eqx.filter_jit
def count_evaluations(
    model: ODEClassifier, images: Float[Array, "n height width channels"]
) -> Int[Array, " n"]:
    """The NFE of each image's solve, of those that `max_steps` ends too."""
    return batched(model).solution(images, throw=False).stats["nfe"]


def count_all_evaluations(
    model: ODEClassifier,
    images: Float[np.ndarray, "n height width channels"],
    batch_size: int,
) -> Int[np.ndarray, " counts"]:
    """The NFE of each image's solve; one number for all where steps are fixed."""
    if not model.solver.adaptive:
        return np.asarray(count_evaluations(model, jnp.asarray(images[:1])))
    length = min(batch_size, len(images))
    found = []
    for start in range(0, len(images), length):
        x = images[start : start + length]
        # Filled up, so that one compilation serves every batch.
        filled = jnp.asarray(x[np.arange(length) % len(x)])
        found.append(np.asarray(count_evaluations(model, filled))[: len(x)])
    return np.concatenate(found)


def describe(attack: AbstractAttack) -> str:
    """For people: `pgd-40 linf 0.1`, `pgd-40 linf 0.1 via rk4x8`."""
    steps = f"-{int(attack.steps)}" if attack.steps > 1 else ""
    budget = f"{attack.norm} {float(attack.epsilon):.3g}"
    return f"{attack.name}{steps} {budget}" + (
        f" via {attack.via}" if attack.via else ""
    )


class Bar:
    """A progress bar that knows what each attack costs and how many samples stand."""

    def __init__(
        self,
        attacks: Sequence[AbstractAttack],
        n: int,
        length: int,
        cost: Cost,
        progress: bool,
    ):
        self.attacks, self.length, self.cost = attacks, length, cost
        self.now, self.compiling = None, 0
        self.bar = tqdm(
            total=self._left(0, n),
            disable=not progress,
            smoothing=0.05,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}, left {remaining}",
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def _left(self, i, n):
        rest = self.attacks[i:]
        compiling = len(programs(rest) - programs(self.attacks[:i]))
        work = -(-n // self.length) * sum(self.cost.of(a) for a in rest)
        return work + compiling * self.cost.compilation

    def begin(self, i, stand):
        self.now = self.attacks[i]
        self.compiling = len(programs([self.now]) - programs(self.attacks[:i]))
        self.bar.total = self.bar.n + self._left(i, stand)
        self.bar.set_description(f"{describe(self.now)}, {stand} stand")

    def step(self, part):
        self.bar.update(self.cost.of(part) + self.compiling * self.cost.compilation)
        self.compiling = 0
