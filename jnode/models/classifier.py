"""The image classifier: layers in sequence, and a linear head."""

import dataclasses
import itertools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from jnode._axes import in_auto
from jnode._batches import check_pixels
from jnode._checks import Fixed, check_positive
from jnode.bounds import Bounds
from jnode.certify.precision import certifying
from jnode.constraints import measured, plain
from jnode.fields.piecewise import jumps
from jnode.models.layers import AbstractLayer, ODEBlock, check_solver
from jnode.solvers import Solver, join


class Head(Fixed):
    r"""Logits $z_c = \langle w_c, \phi\rangle + b_c$, with rows of norm 1 or free."""

    _jnode_fixed = ("rows",)

    weight: Float[Array, "classes features"]
    bias: Float[Array, " classes"]
    unit_norm: bool = eqx.field(static=True)

    def __init__(
        self, features: int, classes: int, *, unit_norm: bool, key: PRNGKeyArray
    ):
        """**Arguments:** the sizes, whether to normalise the rows, and a key."""
        check_positive(features=features, classes=classes)
        self.weight = jr.normal(key, (classes, features)) / features**0.5
        self.bias = jnp.zeros(classes)
        self.unit_norm = unit_norm

    def rows(self) -> Float[Array, "classes features"]:
        """The rows $w_c$, normalised if they are to be."""
        if not self.unit_norm:
            return self.weight
        squares = jnp.sum(self.weight**2, axis=1, keepdims=True)
        return self.weight / jnp.sqrt(jnp.maximum(squares, 1e-12))

    def __call__(self, features: Float[Array, " features"]) -> Float[Array, " classes"]:
        return jnp.matmul(self.rows(), features, precision="highest") + self.bias


class ModelBounds(eqx.Module):
    """The certified bounds of a classifier.

    - `lipschitz`: an upper bound on the L2 Lipschitz constant from image to features,
      of the numerical map; `inf` for adaptive solvers and unconstrained parts.
    - `layers`: the constant of each layer; `lipschitz` is their product.
    - `growth`: by how much an error made in some layer, or in a step of a solve, can
      have grown at the end: the largest product of the constants after it, at least 1.
    - `bias_gains`: for each layer, by how much a bias of it counts in a step.
    - `fields`: for each ODE block with a ladder of steps, the bounds of its field in
        each segment between jumps.
    """

    lipschitz: Float[Array, ""]
    layers: tuple[Float[Array, ""], ...]
    growth: Float[Array, ""]
    bias_gains: tuple[Float[Array, ""], ...]
    fields: tuple[tuple[Bounds, ...], ...] = ()


class ODEClassifier(Fixed):
    """Classifies an image by the end of a trajectory.

    The image goes through the layers one after another, and the logits are a linear
    function of the last state. The ODE blocks among the layers cover consecutive
    intervals of time, so together they are one trajectory, which one `Solver`
    describes; the layers between them may change the grid of the state.
    """

    _jnode_fixed = ("states", "embed", "bounds", "lipschitz")

    layers: tuple[AbstractLayer, ...]
    head: Head
    image_shape: tuple[int, int, int] = eqx.field(static=True)

    def __init__(
        self,
        layers: Sequence[AbstractLayer],
        head: Head,
        image_shape: tuple[int, int, int],
    ):
        """**Arguments:** the layers; the head, of as many features as the last state
        has entries; and the shape of an image (height, width, channels).

        **Raises:** `ValueError` for layers without an ODE block, and for blocks whose
        intervals are not consecutive or whose solvers are not parts of one solver;
        `TypeError` for layers or a head that are not of this package's classes, or
        subclasses of `AbstractLayer`.
        """
        self.layers, self.head = tuple(layers), head
        for layer in self.layers:
            if not isinstance(layer, AbstractLayer):
                raise TypeError(
                    "layers must be of subclasses of jnode.models.AbstractLayer, which "
                    f"state their constants, not {type(layer).__name__}."
                )
        if not isinstance(head, Head):
            raise TypeError(
                f"head must be a jnode.models.Head, not {type(head).__name__}."
            )
        self.image_shape = image_shape
        if not self.blocks:
            raise ValueError("layers must hold at least one ODEBlock.")
        for before, after in itertools.pairwise(self.blocks):
            if before.t1 != after.t0:
                raise ValueError(
                    "layers must hold blocks of consecutive times: one ends at "
                    f"t1 = {before.t1:g}, and the next begins at t0 = {after.t0:g}."
                )
        _ = self.solver  # raises for parts of different solvers

    @property
    def blocks(self) -> tuple[ODEBlock, ...]:
        """The ODE blocks among the layers."""
        return tuple(x for x in self.layers if isinstance(x, ODEBlock))

    @property
    def solver(self) -> Solver:
        """The solver of the whole trajectory, of which each block solves a part."""
        return join([block.solver for block in self.blocks], self._edges)

    @property
    def jumps(self) -> tuple[float, ...]:
        """The times at which weights jump, within a block or between two blocks."""
        starts = {block.t0 for block in self.blocks[1:]}
        for b in self.blocks:
            starts.update(t for t in jumps(b.field) if b.t0 < t < b.t1)
        return tuple(sorted(starts))

    @property
    def _edges(self) -> list[float]:
        """The ends of the blocks, as fractions of the whole time."""
        ends = [self.blocks[0].t0, *(block.t1 for block in self.blocks)]
        return [(t - ends[0]) / (ends[-1] - ends[0]) for t in ends]

    def __call__(
        self, image: Float[Array, "height width channels"]
    ) -> Float[Array, " classes"]:
        """The logits of one image with pixels in [0, 1]; `jax.vmap` maps a batch.

        **Raises:** `ValueError` for an image of another shape; at run time, as
        `jnode.solve`.
        """

        def logits(model, image):
            return model.head(model.embed(image))

        return in_auto(logits, self, image, PartitionSpec())

    def states(
        self, image: Float[Array, "height width channels"]
    ) -> tuple[Float[Array, "..."], ...]:
        """The state after each layer."""
        _check_image(self, image)
        states = [image]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return tuple(states[1:])

    def embed(
        self, image: Float[Array, "height width channels"]
    ) -> Float[Array, " features"]:
        """The features $\\phi$ that feed the logits."""
        return self.states(image)[-1].ravel()

    def encode(
        self, image: Float[Array, "height width channels"]
    ) -> Float[Array, "..."]:
        """The state before the first ODE block."""
        _check_image(self, image)
        for layer in self.layers:
            if isinstance(layer, ODEBlock):
                break
            image = layer(image)
        return image

    def trajectories(
        self, image: Float[Array, "height width channels"]
    ) -> list[tuple[Float[np.ndarray, " times"], Float[Array, "times ..."]]]:
        """The times and states along each block (see `ODEBlock.trajectory`)."""
        _check_image(self, image)
        found, state = [], image
        for layer in self.layers:
            if isinstance(layer, ODEBlock):
                found.append(layer.trajectory(state))
                state = found[-1][1][-1]
            else:
                state = layer(state)
        return found

    def lipschitz(self) -> Float[Array, ""]:
        """A certified upper bound on the L2 Lipschitz constant from image to features.

        It holds for the numerical solve, not only for the flow; `inf` for adaptive
        solvers and unconstrained parts.
        """
        return self.bounds().lipschitz

    @certifying
    def bounds(self) -> ModelBounds:
        """The certified bounds of the model, from the arrays that it holds now."""
        layers = measured(self.layers)
        constants, gains, growth = [], [], jnp.asarray(1.0)
        for layer in layers:
            if isinstance(layer, ODEBlock):
                (constant, inside), gain = layer.amplifications(), layer.bias_gain()
            else:
                constant = inside = jnp.asarray(layer.lipschitz())
                gain = jnp.asarray(1.0)
            constants.append(constant)
            gains.append(gain)
            growth = jnp.maximum(growth * constant, jnp.maximum(inside, 1))
        ladders = [x for x in layers if isinstance(x, ODEBlock) and x.solver.ladder]
        fields = tuple(block.bounds_of_segments() for block in ladders)
        total = _product(constants)
        return ModelBounds(total, tuple(constants), growth, tuple(gains), fields)

    def with_solver(self, solver: Solver) -> "ODEClassifier":
        """The same weights with another solver, of which each block takes its part.

        **Raises:** `ValueError` if a fixed step would cross from one block to the next;
        `TypeError` for a solver of Diffrax.
        """
        check_solver(solver)
        parts = [solver.part(*share) for share in itertools.pairwise(self._edges)]
        return self._solved_by(parts)

    def freeze(self, image: Float[Array, "height width channels"]) -> "ODEClassifier":
        """The same weights with the steps that the adaptive solver takes for one image.

        Certificates of the result refer to the result: a model that takes these steps
        for every image. They say nothing about the adaptive model, whose predictions
        may differ. Choose an image outside of the test set: steps that depended on the
        attacked image would be adaptive again.

        **Raises:** `ValueError` for a model whose steps are fixed.
        """
        starts = zip(self.layers, (image, *self.states(image)), strict=False)
        return self._solved_by(
            [x.freeze(y) for x, y in starts if isinstance(x, ODEBlock)]
        )

    def _solved_by(self, solvers: Sequence[Solver]) -> "ODEClassifier":
        """The same weights with one solver for each block."""
        rest = iter(solvers)
        layers = [
            dataclasses.replace(layer, solver=next(rest))
            if isinstance(layer, ODEBlock)
            else layer
            for layer in self.layers
        ]
        return dataclasses.replace(self, layers=layers)

    def bake(self) -> "ODEClassifier":
        """An equal model that holds plain matrices, for inference and attacks."""
        return plain(self)


def _product(constants: Sequence[Float[Array, ""]]) -> Float[Array, ""]:
    """The product rounded up, in the least precise dtype among the constants."""
    dtype = min((x.dtype for x in constants), key=lambda dtype: dtype.itemsize)
    total = jnp.ones((), dtype)
    for constant in constants:
        # A product that underflowed to zero would not be a bound.
        total = jnp.maximum(total * constant.astype(dtype), jnp.finfo(dtype).tiny)
    return total * (1 + (2 + len(constants)) * jnp.finfo(dtype).eps)


@eqx.filter_jit
def step_lengths(
    model: ODEClassifier, images: Float[Array, "batch height width channels"]
) -> list[Float[Array, " steps"]]:
    """The L2 length of each step of each block, averaged over images.

    A model whose state does not move after its first step is no deeper than that step.
    For an adaptive solver the lengths are between equally spaced times.
    """
    model = plain(model)

    def one(image):
        moves = [jnp.diff(y, axis=0) for _, y in model.trajectories(image)]
        return [jnp.linalg.norm(m.reshape(len(m), -1), axis=1) for m in moves]

    return [jnp.mean(lengths, axis=0) for lengths in jax.vmap(one)(images)]


def _check_image(model: ODEClassifier, image: Array) -> None:
    if image.shape != model.image_shape:
        raise ValueError(
            f"image must have shape {model.image_shape} (height, width, channels), "
            f"not {image.shape}; map batches with jax.vmap(model)."
        )
    check_pixels(image)
