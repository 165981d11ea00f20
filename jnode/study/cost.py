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
from jnode.evaluation.cost import evaluations, programs
from jnode.study.cell import Cell
from jnode.study.measure import ensembles
from jnode.tpu.cost import work
from jnode.train import make_loss
from jnode.train.state import init_state

EFFICIENCY = 0.3
"""Of the machine's rate in large matrix products, what training and attacks reach."""
COMPILATION = 6.0
"""Seconds a program."""


class Cost(NamedTuple):
    """Seconds, estimated: of training, of measuring at most, and of compilation."""

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
    take at most: samples that are broken are attacked no more, so models that fall at
    once cost much less. What cells share (a trained model, a program) counts for the
    first of them.

    **Raises:** what `jnode.data.load` raises.
    """
    rate = EFFICIENCY * _products_per_second()
    sizes = {name: _size(name, data_dir) for name in {c.train.data.name for c in cells}}
    trained, compiled, found = set(), set(), []
    for cell in cells:
        shape, classes, length, test_length = sizes[cell.train.data.name]
        forward, gradient = _flops(cell, shape, classes)
        training, fresh = 0.0, 0
        if cell.trained not in trained:
            trained.add(cell.trained)
            length = min(length, cell.train.data.num_train or length)
            loss = cell.train.loss
            per_image = gradient * (1 + loss.steps * (loss.inputs == "adversarial"))
            training = cell.train.epochs * length * per_image / rate
            fresh += 1
        alone = [attacks.parse(spec) for spec in cell.measures.alone]
        tried = [(cell.measures.num_alone, attack) for attack in alone]
        tried += [
            (cell.measures.num_ensemble, attack) for attack in ensembles(cell, classes)
        ]
        measuring = test_length * forward
        for images, attack in tried:
            logits, gradients = evaluations(attack)
            measuring += images * (logits * forward + gradients * gradient)
        kinds = {
            (repr(cell.train.model), str(cell.evaluated), kind)
            for kind in programs([attack for _, attack in tried])
        }
        fresh += len(kinds - compiled)
        compiled |= kinds
        found.append(Cost(training, measuring / rate, COMPILATION * fresh))
    return found


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


def _flops(cell: Cell, shape, classes: int, batch: int = 16) -> tuple[float, float]:
    """Of one image: for its logits, and for a gradient of the loss."""
    config = cell.train
    sizes = {"image_shape": shape, "classes": classes, "total_steps": 1}
    model = init_state(config, **sizes).model.with_solver(cell.evaluated)
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    images = jnp.zeros((batch, *shape))
    labels = jnp.zeros(batch, jnp.int32)
    keys = jax.random.split(jax.random.key(0), batch)
    # An attack's gradients are counted by whoever asks.
    loss = make_loss(dataclasses.replace(config.loss, inputs="clean"))

    def value(arrays):
        return loss(eqx.combine(arrays, static), images, labels, keys)[0]

    forward = work(lambda a: eqx.combine(a, static).batch(images), arrays, turns=TURNS)
    both = work(jax.grad(value), arrays, turns=TURNS)
    return forward.flops / batch, both.flops / batch
