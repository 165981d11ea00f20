"""Dynamical systems' based networks (Celledoni et al., 2022) on CIFAR-10.

Three stages of 32, 64 and 128 channels, each a convolution that lifts, residual steps
that contract or expand, and max pooling. A contracting step is one of Euler's method
for x' = -A^T s(A x + b), an expanding one for x' = A^T s(A x + b) or x' = s(B x + b).
All are ODE blocks here, so that their certificate is the one of any model; the
convolutions' norms are certified upper bounds.
"""

from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from checkpoints import arrays, kernel
from jaxtyping import Array, Float
from nets import head

from jnode import Bounds, Solver
from jnode.fields import AbstractVectorField
from jnode.linear import Conv
from jnode.models import ODEBlock, ODEClassifier
from jnode.models.layers import AbstractLayer, Flatten

MEANS = (0.4914, 0.4822, 0.4465)
DEVIATIONS = {
    "Contractive": (0.2023, 0.1994, 0.2010),
    "Switch flexible": (0.2023, 0.1994, 0.2010),
    "Switch prescribed": (0.247, 0.243, 0.261),
}
"""By which each notebook divides the pixels' channels before its attacks."""
SLOPES = {"Contractive": 0.0, "Switch flexible": 0.5, "Switch prescribed": 0.5}
"""The activation's slope below zero."""
SUBSTEPS = 2
UP = 1 + 1e-5
"""Room for the rounding of a product of bounds."""


class Lift(AbstractLayer):
    """A convolution without bias times a learned factor, then relu."""

    affine: ClassVar[bool] = False
    conv: Conv
    factor: Float[Array, ""]
    means: Float[Array, " channels"] | None = None
    deviations: Float[Array, " channels"] | None = None

    def __call__(self, x):
        if self.means is not None:
            x = (x - self.means) / self.deviations
        return jax.nn.relu(self.factor * self.conv(x))

    def lipschitz(self):
        found = jnp.abs(self.factor) * self.conv.norm() * UP
        if self.deviations is not None:
            found = found / jnp.min(self.deviations) * UP
        return found


class Pool(AbstractLayer):
    """The largest of each 2 x 2 block: blocks are disjoint, so its constant is 1."""

    affine: ClassVar[bool] = False

    def __call__(self, x):
        rows, columns, channels = x.shape
        return x.reshape(rows // 2, 2, columns // 2, 2, channels).max(axis=(1, 3))

    def lipschitz(self):
        return jnp.asarray(1.0)


class Gradient(AbstractVectorField):
    """rate * A^T s(A x + b): it descends for a negative rate, and ascends otherwise."""

    conv: Conv
    bias: Float[Array, " hidden"]
    rate: Float[Array, ""]
    slope: float

    def __call__(self, t: Any, y, args=None):
        hidden = jax.nn.leaky_relu(self.conv(y) + self.bias, self.slope)
        return self.rate * self.conv.T(hidden)

    def bounds(self) -> Bounds:
        # A^T D A has eigenvalues between 0 and ||A||^2, as 0 <= D <= 1.
        constant = jnp.abs(self.rate) * self.conv.norm() ** 2 * UP
        zero, down = jnp.zeros_like(constant), self.rate < 0
        log_norm = (jnp.where(down, -constant, zero), jnp.where(down, zero, constant))
        cocoercivity = jnp.where(down, (1 - 1e-5) / constant, zero)
        return Bounds(constant, log_norm, cocoercivity)


class Layer(AbstractVectorField):
    """rate * s(B x + b)."""

    conv: Conv
    bias: Float[Array, " hidden"]
    rate: Float[Array, ""]
    slope: float

    def __call__(self, t: Any, y, args=None):
        return self.rate * jax.nn.leaky_relu(self.conv(y) + self.bias, self.slope)

    def bounds(self) -> Bounds:
        return Bounds(jnp.abs(self.rate) * self.conv.norm() * UP)


def build(folder: Path, name: str) -> ODEClassifier:
    """A net of `Adversarial Robustness/CIFAR10`.

    **Arguments:** the checkout, and "kind/margin".
    """
    kind, _, margin = name.partition("/")
    place = folder / "Adversarial Robustness/CIFAR10" / kind
    w = arrays(place / f"CertifiedLip_margin_{margin}.pt")
    layers: list[AbstractLayer] = []
    clock = 0.0
    for stage, side in enumerate((32, 16, 8)):
        layers.append(_lift(w, stage, side, kind))
        for field, solver in _steps(w, stage, side, kind):
            layers.append(ODEBlock(field, solver, clock, clock + 1))
            clock += 1
        layers.append(Pool())
    layers.append(Flatten())
    # Rows of the last layer in the order of rows, columns, channels.
    last = w["FC.1.weight"].reshape(10, 128, 4, 4).transpose(0, 2, 3, 1).reshape(10, -1)
    return ODEClassifier(layers, head(last, w["FC.1.bias"]), (32, 32, 3))


def _conv(weight, side: int) -> Conv:
    return Conv(jnp.asarray(kernel(weight)), (side, side))


def _lift(w, stage: int, side: int, kind: str) -> Lift:
    conv = _conv(w[f"seq.{stage}.conv1.0.weight"], side)
    factor = jnp.asarray(w[f"seq.{stage}.rescalings"][-1])
    if stage:
        return Lift(conv, factor)
    return Lift(conv, factor, jnp.asarray(MEANS), jnp.asarray(DEVIATIONS[kind]))


def _steps(w, stage: int, side: int, kind: str):
    """The fields of a stage in their order, each with its solver over unit time."""
    at, slope = f"seq.{stage}.", SLOPES[kind]
    lengths = jnp.abs(jnp.asarray(w[f"{at}u"]))
    factors = jnp.clip(jnp.asarray(w[f"{at}rescalings"][:-1]), 0, 1)
    once, twice = Solver("euler", steps=1), Solver("euler", steps=SUBSTEPS)

    def part(i: int) -> tuple[Conv, Float[Array, " hidden"]]:
        conv = _conv(w[f"{at}convs.{i}.weight"], side)
        return conv, jnp.asarray(w[f"{at}convs.{i}.bias"])

    if kind == "Contractive":
        for i in range(4):
            yield Gradient(*part(i), -lengths[i], slope), once
    elif kind == "Switch flexible":
        for i in (0, 2):
            yield Gradient(*part(i), -lengths[i], slope), twice
            yield Gradient(*part(i), lengths[i + 1], 0.0), once
    else:
        for i in (0, 2):
            expand = factors[i // 2] * lengths[i] / SUBSTEPS
            grow = Layer(*part(i), expand, slope)
            shrink = Gradient(*part(i + 1), -lengths[i + 1] / SUBSTEPS, slope)
            for field in SUBSTEPS * (grow, shrink):
                yield field, once
