"""What a study is estimated to cost, before anything of it is run."""

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jnode import attacks, data
from jnode._hlo_cost import work
from jnode.models.batched import batched
from jnode.study.cell import Cell
from jnode.study.measure import ensembles
from jnode.train import make_loss
from jnode.train.state import init_state

EFFICIENCY = 0.3
"""Of the machine's rate in large matrix products, what training and attacks reach."""
COMPILATION = 6.0
"""Seconds a program."""


class Cost(NamedTuple):
    """Seconds, estimated: of training, of measuring, and of compilation."""

    training: float
    measuring: float
    compilation: float

    @property
    def total(self) -> float:
        return sum(self)


def estimate(
    cells: Sequence[Cell], *, data_dir: str | os.PathLike | None = None
) -> list[Cost]:
    """The cost of each cell on this machine; nothing is compiled but one product.

    From the arithmetic of a training step and the numbers of gradients that attacks
    take. Of each of AutoAttack's budgets half of the samples are taken to fall to its
    first attack, and to be attacked no more. What cells share (a trained model, a
    program) counts for the first of them.

    **Raises:** what `jnode.data.load` raises.
    """
    rate = EFFICIENCY * _products_per_second()
    sizes = {name: _size(name, data_dir) for name in {c.train.data.name for c in cells}}
    trained, compiled, found = set(), set(), []
    for cell in cells:
        shape, classes, length, test_length = sizes[cell.train.data.name]
        forward, gradient, step = _flops(cell, shape, classes)
        training, fresh = 0.0, 0
        if cell.trained not in trained:
            trained.add(cell.trained)
            length = min(length, cell.train.data.num_train or length)
            loss = cell.train.loss
            if loss.inputs == "adversarial":
                step += gradient * (1 + loss.steps)
            training = cell.train.epochs * length * step / rate
            fresh += 1
        alone = [attacks.parse(spec) for spec in cell.measures.alone]
        tried = [(float(cell.measures.num_alone), attack) for attack in alone]
        left = float(cell.measures.num_ensemble)
        for budget in ensembles(cell, classes):
            for k, attack in enumerate(budget):
                tried.append((left / 2 if k else left, attack))
            left /= 2
        measuring = test_length * forward
        for images, attack in tried:
            logits, gradients = _calls(attack)
            measuring += images * (logits * forward + gradients * gradient)
        kinds = {
            (repr(cell.train.model), str(cell.evaluated), kind)
            for kind in {_program(attack) for _, attack in tried}
        }
        fresh += len(kinds - compiled)
        compiled |= kinds
        found.append(Cost(training, measuring / rate, COMPILATION * fresh))
    return found


def _calls(attack: attacks.AbstractAttack) -> tuple[int, int]:
    """How often an attack and its judge ask for logits and for gradients, at most."""
    steps = attack.restarts * int(attack.steps)
    if attack.name == "gaussian":
        return 2, 0
    if attack.name == "fgsm":
        return 2, 1
    if attack.name == "square":
        return 2 + steps + attack.restarts, 0
    if attack.name.startswith("fab"):
        return 2 + steps, steps
    return 2, steps + attack.restarts


def _program(attack: attacks.AbstractAttack) -> tuple:
    """What tells attacks apart that are compiled to programs of their own."""
    return attack.name, attack.norm, int(attack.steps), attack.restarts, attack.via


def _products_per_second() -> float:
    """FLOP/s of a large product in float32."""
    a = jnp.ones((1024, 1024))
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * 1024**3 / float(np.median(times))


def _size(name: str, data_dir) -> tuple[tuple[int, int, int], int, int, int]:
    train = data.load(name, split="train", data_dir=data_dir)
    test = data.load(name, split="test", data_dir=data_dir)
    return train.image_shape, train.num_classes, len(train), len(test)


TURNS = 3
"""Steps that an adaptive solve is taken for."""


def _flops(cell: Cell, shape, classes: int) -> tuple[float, float, float]:
    """Of one image: for its logits, for a gradient by it, and of a training step."""
    config = cell.train
    batch = config.batch_size
    sizes = {"image_shape": shape, "classes": classes, "total_steps": 1}
    model = init_state(config, **sizes).model
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    images = jnp.zeros((batch, *shape))
    labels = jnp.zeros(batch, jnp.int32)
    keys = jax.random.split(jax.random.key(0), batch)
    # An attack's gradients are counted by whoever asks.
    loss = make_loss(dataclasses.replace(config.loss, inputs="clean"))
    solved = model.bake().with_solver(cell.evaluated)

    def value(arrays):
        return loss(eqx.combine(arrays, static), images, labels, keys)[0]

    counted = (
        work(batched(solved), images, turns=TURNS),
        work(jax.grad(lambda x: jnp.sum(batched(solved)(x))), images, turns=TURNS),
        work(jax.grad(value), arrays, turns=TURNS),
    )
    forward, gradient, step = (one.flops / batch for one in counted)
    return forward, gradient, step
