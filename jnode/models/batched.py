"""A model of one image as a fast function of batches."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode._batches import check_pixels
from jnode.models.classifier import ODEClassifier
from jnode.models.layers import ODEBlock
from jnode.solvers import Solution, solve_batch
from jnode.solvers.solution import compiled, finished, verdict

Images = Float[Array, "batch height width channels"]


class Batched(eqx.Module):
    """A model of one image as a classifier of batches, which is a PyTree for `jax.jit`.

    An `ODEClassifier` solves the whole batch at once, with separate steps for each
    sample; any other function of one image is mapped by `jax.vmap`. The tolerances of
    an adaptive solver are data, so other tolerances do not recompile, and neither do
    repeated calls outside jit.
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
        """The logits of each image, as by `jax.vmap` of the model.

        `throw` is that of `jnode.solve`; other models ignore it.

        **Raises:** `ValueError` for images of another shape than an `ODEClassifier`'s.
        """
        if not isinstance(self.model, ODEClassifier):
            return _mapped(self.model, images)
        found, seen = _logits(self, images)
        return self._finished(found, seen) if throw else found

    def solution(self, images: Images, *, throw: bool = True) -> Solution:
        """The state after all layers, and the summed statistics of all blocks.

        Steps are chosen for each sample separately. `throw` is that of `jnode.solve`.

        **Raises:** `TypeError` for a model other than an `ODEClassifier`; `ValueError`
        as for a call.
        """
        if not isinstance(self.model, ODEClassifier):
            raise TypeError(
                "model must be an ODEClassifier to have a solution, not "
                f"{type(self.model).__name__}."
            )
        found, seen = _solution(self, images)
        if not throw:
            return found
        return eqx.tree_at(lambda s: s.y, found, self._finished(found.y, seen))

    def _finished(self, x, seen):
        """`x`, with an error at run time unless all solves reached their end."""
        assert isinstance(self.model, ODEClassifier)
        solver = self.model.blocks[0].solver
        label = solver.name if solver.adaptive else str(self.model.solver)
        return finished(x, seen, label, solver.max_steps)


def batched(model: Callable) -> Batched:
    """The model as a function of a batch of images; see `Batched`."""
    return Batched(model)


@compiled
def _mapped(model, images):
    return jax.vmap(model)(images)


@compiled
def _logits(whole, images):
    found = _solved(whole, images)
    return logits(whole.model, found.y), verdict(found.y, found.stats)


def logits(
    model: ODEClassifier, ends: Float[Array, " batch *state"]
) -> Float[Array, "batch classes"]:
    """The logits of the states after the last layer."""
    return jax.vmap(lambda y: model.head(y.ravel()))(ends)


@compiled
def _solution(whole, images):
    found = _solved(whole, images)
    return found, verdict(found.y, found.stats)


def _solved(whole, images):
    model = whole.model
    if images.shape[1:] != model.image_shape:
        raise ValueError(
            f"images must have shape (batch, *{model.image_shape}), with height, width "
            f"and channels behind, not {images.shape}."
        )
    check_pixels(images)
    # Each layer processes the whole batch before the next layer.
    states, found = images, []
    for layer in model.layers:
        if not isinstance(layer, ODEBlock):
            states = jax.vmap(layer)(states)
            continue
        solver = layer.solver
        if whole.tolerances is not None:
            solver = solver.at(jax.lax.stop_gradient(whole.tolerances))
        times = {"t0": layer.t0, "t1": layer.t1}
        found.append(solve_batch(layer.field, states, solver, throw=False, **times))
        states = found[-1].y
    stats = jax.tree.map(lambda *counts: sum(counts), *(one.stats for one in found))
    return Solution(states, stats, found[0].t0, found[-1].t1)
