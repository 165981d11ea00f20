"""GAINS (Zeqiri et al., ICLR 2023) on MNIST: small ODE nets without normalisation.

Their Dormand-Prince solver doubles, keeps or halves its step, so that a finite number
of step sequences is possible and can be verified. It is rebuilt here as a controller of
Diffrax, for single images, as their evaluation runs it.
"""

from pathlib import Path
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from checkpoints import arrays, kernel
from jaxtyping import Array, Float
from nets import MeanPool, convolved, head

import jnode
from jnode.fields.base import AbstractUncertifiedField
from jnode.models import ODEBlock, ODEClassifier
from jnode.models.layers import AbstractLayer

MEAN, DEVIATION = 0.1307, 0.3081
TOLERANCE = 0.005
SHORTEST = 0.02
MAX_STEPS = 128


class Doubling(diffrax.AbstractStepSizeController):
    """Steps that double if the error is below 2^-5 and halve if it is above 1.

    The error is the sum of the absolute errors of all entries, divided by the
    tolerance. A step that would pass the end is cut there. If a step would become
    shorter than 0.02 (or the cut one was refused three times), control is given up: all
    further steps have this length and are accepted.
    """

    first: Float[Array, ""]
    t1: float = 1.0

    def wrap(self, direction):
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        first = t0 + self.first.astype(jnp.result_type(t0))
        return first, (jnp.asarray(False), jnp.asarray(0))

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        given_up, refusals = controller_state
        length = t1 - t0
        error = jnp.sum(jnp.abs(jax.lax.stop_gradient(y_error))) / TOLERANCE
        kept = (error <= 1) | given_up
        doubled = kept & (error <= 2.0**-5) & ~given_up
        start = jnp.where(kept, t1, t0)
        next_length = jnp.where(
            given_up | (kept & ~doubled),
            length,
            jnp.where(doubled, 2 * length, length / 2),
        )
        refusals = jnp.where(~kept & (refusals > 0), refusals + 1, refusals)
        hopeless = (next_length < SHORTEST) & (refusals == 0) | (refusals > 2)
        stop = ~kept & hopeless
        next_length = jnp.where(stop, length, next_length)
        cut = start + next_length > self.t1
        refusals = jnp.where(cut & (refusals == 0) & ~given_up, 1, refusals)
        end = jnp.where(cut, self.t1, start + next_length).astype(t1.dtype)
        state = (given_up | stop, refusals)
        jumped, worked = jnp.asarray(False), diffrax.RESULTS.successful
        return kept, start, end, jumped, state, worked


class Stem(AbstractLayer):
    """The normalised image through two 5 x 5 convolutions of stride 2 with relu."""

    affine: ClassVar[bool] = False
    kernels: tuple[Float[Array, "5 5 in out"], ...]
    biases: tuple[Float[Array, " out"], ...]

    def __call__(self, x):
        x = (x - MEAN) / DEVIATION
        for weight, bias in zip(self.kernels, self.biases, strict=True):
            x = jax.nn.relu(convolved(x, weight, 2, 0) + bias)
        return x

    def lipschitz(self):
        return jnp.asarray(jnp.inf)


class Field(AbstractUncertifiedField):
    """Two 3 x 3 convolutions with relu, with the time as one more channel."""

    kernels: tuple[Float[Array, "3 3 in out"], ...]
    biases: tuple[Float[Array, " out"], ...]

    def __call__(self, t: Any, y, args=None):
        for weight, bias in zip(self.kernels, self.biases, strict=True):
            time = jnp.full((*y.shape[:2], 1), t, y.dtype)
            y = jnp.concatenate([time, y], axis=-1)
            y = jax.nn.relu(convolved(y, weight, 1, 1) + bias)
        return y


class Gains(eqx.Module):
    """The published model: its parts, and its own solver.

    `relative` has the same weights and a solver of jnode's, for transferred attacks.
    """

    relative: ODEClassifier
    first_step: Float[Array, ""]

    def solution(self, image: Float[Array, "28 28 1"]) -> diffrax.Solution:
        """The solve of one image, with its statistics."""
        state = self.relative.encode(image)
        return diffrax.diffeqsolve(
            diffrax.ODETerm(self.relative.blocks[0].field),
            diffrax.Dopri5(),
            0.0,
            1.0,
            None,
            state,
            stepsize_controller=Doubling(self.first_step),
            max_steps=MAX_STEPS,
        )

    def __call__(self, image: Float[Array, "28 28 1"]) -> Float[Array, " 10"]:
        ys = self.solution(image).ys
        assert ys is not None
        return self.relative.head(jnp.mean(ys[-1], axis=(0, 1)))


def build(folder: Path, name: str) -> Gains:
    """The model of a file of `models/pre-trained/MNIST`."""
    w = arrays(folder / "models/pre-trained/MNIST" / name, "state_dict")

    def convs(*names: str) -> tuple[tuple, tuple]:
        kernels = tuple(jnp.asarray(kernel(w[f"{n}.weight"])) for n in names)
        return kernels, tuple(jnp.asarray(w[f"{n}.bias"]) for n in names)

    at = "net.5.odefunc.conv{}._layer"
    field = Field(*convs(at.format(1), at.format(2)))
    solver = jnode.Solver("dopri5", rtol=1e-3, atol=1e-4)
    layers = [Stem(*convs("net.1", "net.3")), ODEBlock(field, solver), MeanPool()]
    relative = ODEClassifier(
        layers, head(w["net.8.weight"], w["net.8.bias"]), (28, 28, 1)
    )
    first = jnp.clip(jnp.asarray(w["net.5.running_mean_step"][0]), 0, 1)
    return Gains(relative, first)
