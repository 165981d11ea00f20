"""A model of one image as a function of batches, by the quickest way there is."""

import dataclasses
import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.models.classifier import ODEClassifier, check_pixels
from jnode.solvers import Solution, solve_batch

Images = Float[Array, "batch height width channels"]


class Batched(eqx.Module):
    """A model of one image, as a classifier of batches that `jax.jit` takes as data.

    An `ODEClassifier` solves the whole batch at once, each sample's steps its own; any
    other function of one image is mapped by `jax.vmap`. The tolerances of an adaptive
    solver are data, so that others compile nothing anew; nor do calls outside jit.
    """

    model: Callable
    tolerances: Float[Array, "2"] | None

    def __init__(self, model: Callable):
        """**Arguments:** the model, which maps one image to logits."""
        self.model, self.tolerances = model, None
        if isinstance(model, ODEClassifier) and model.solver.adaptive:
            self.tolerances = jnp.asarray(model.solver.tolerances)
            solver = dataclasses.replace(model.solver, rtol=None, atol=None)
            self.model = model.with_solver(solver)

    def __call__(
        self, images: Images, *, throw: bool = True
    ) -> Float[Array, "batch classes"]:
        """Logits of each image: what `jax.vmap` of the model gives.

        `throw` is that of `jnode.solve`, and of no use to other models.

        **Raises:** `ValueError` for images of another shape than an `ODEClassifier`'s.
        """
        return _logits(self, images, throw)

    def solution(self, images: Images, *, throw: bool = True) -> Solution:
        """The solutions of an `ODEClassifier`'s ODE, each sample's steps its own.

        **Raises:** `TypeError` for another model; `ValueError` as a call does.
        """
        if not isinstance(self.model, ODEClassifier):
            raise TypeError(
                "model must be an ODEClassifier to have a solution, not "
                f"{type(self.model).__name__}."
            )
        return _solution(self, images, throw)


def batched(model: Callable) -> Batched:
    """The model as a function of a batch of images; see `Batched`."""
    return Batched(model)


@functools.partial(eqx.filter_jit, inline=True)
def _logits(whole, images, throw):
    if not isinstance(whole.model, ODEClassifier):
        return jax.vmap(whole.model)(images)
    return logits(whole.model, _solved(whole, images, throw).y)


def logits(
    model: ODEClassifier, ends: Float[Array, "batch *state"]
) -> Float[Array, "batch classes"]:
    """The logits of states at the end of the ODE."""
    return jax.vmap(lambda y: model.head(y.ravel()))(ends)


@functools.partial(eqx.filter_jit, inline=True)
def _solution(whole, images, throw):
    return _solved(whole, images, throw)


def _solved(whole, images, throw):
    model = whole.model
    if images.shape[1:] != model.image_shape:
        raise ValueError(
            f"images must have shape (batch, *{model.image_shape}), with height, width "
            f"and channels behind, not {images.shape}."
        )
    check_pixels(images)
    solver = model.solver
    if whole.tolerances is not None:
        solver = solver.at(jax.lax.stop_gradient(whole.tolerances))
    states = jax.vmap(model.encoder)(images)
    return solve_batch(model.field, states, solver, throw=throw)
