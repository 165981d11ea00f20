"""The image classifier: encoder, ODE block, head."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode._checks import check_positive
from jnode.bounds import Bounds
from jnode.certify.amplification import amplification
from jnode.constraints import measured, plain
from jnode.fields import AbstractVectorField
from jnode.models.encoders import AbstractEncoder
from jnode.solvers import Solution, Solver, solve


class Head(eqx.Module):
    r"""Logits $z_c = \langle w_c, \phi\rangle + b_c$, with rows of norm 1 or free."""

    weight: Float[Array, "classes features"]
    bias: Float[Array, " classes"]
    unit_norm: bool = eqx.field(static=True)

    def __init__(
        self, features: int, classes: int, *, unit_norm: bool, key: PRNGKeyArray
    ):
        """**Arguments:** the sizes, whether rows are normalised, and a key."""
        check_positive(features=features, classes=classes)
        self.weight = jr.normal(key, (classes, features)) / features**0.5
        self.bias = jnp.zeros(classes)
        self.unit_norm = unit_norm

    def rows(self) -> Float[Array, "classes features"]:
        """The rows $w_c$ that are used."""
        if not self.unit_norm:
            return self.weight
        squares = jnp.sum(self.weight**2, axis=1, keepdims=True)
        return self.weight / jnp.sqrt(jnp.maximum(squares, 1e-12))

    def __call__(self, features: Float[Array, " features"]) -> Float[Array, " classes"]:
        return jnp.matmul(self.rows(), features, precision="highest") + self.bias


class ModelBounds(eqx.Module):
    """What is certified of a classifier.

    - `lipschitz`: an upper bound on the L2 Lipschitz constant from image to features,
      of the numerical map; `inf` for adaptive solvers and unconstrained parts.
    - `encoder`: the encoder's share of it.
    - `field`: the bounds of the vector field, holding at all times.
    """

    lipschitz: Float[Array, ""]
    encoder: Float[Array, ""]
    field: Bounds


class ODEClassifier(eqx.Module):
    """Classifies an image by where a trajectory ends.

    $y(0)$ is the encoded image, $dy/dt = f(t, y)$ is solved numerically to $t = 1$, and
    the logits are a linear function of $y(1)$.
    """

    encoder: AbstractEncoder
    field: AbstractVectorField
    head: Head
    solver: Solver = eqx.field(static=True)
    image_shape: tuple[int, int, int] = eqx.field(static=True)

    def __call__(
        self, image: Float[Array, "height width channels"]
    ) -> Float[Array, " classes"]:
        """The logits of one image with pixels in [0, 1]; `jax.vmap` maps a batch.

        **Raises:** `ValueError` for an image of another shape; at run time, whatever
        `jnode.solve` raises.
        """
        return self.head(self.embed(image))

    def solution(
        self, image: Float[Array, "height width channels"], *, throw: bool = True
    ) -> Solution:
        """The ODE's solution for one image; `throw` as of `jnode.solve`."""
        _check_image(self, image)
        return solve(self.field, self.encoder(image), self.solver, throw=throw)

    def embed(
        self, image: Float[Array, "height width channels"]
    ) -> Float[Array, " features"]:
        """The features $\\phi$ that feed the logits."""
        return self.solution(image).y.ravel()

    def lipschitz(self, solver: Solver | None = None) -> Float[Array, ""]:
        """A certified upper bound on the L2 Lipschitz constant from image to features.

        Of the numerical map that `solver` (by default the model's own) computes; `inf`
        for adaptive solvers and unconstrained parts.
        """
        solver = self.solver if solver is None else solver
        growth = amplification(self.field, solver)
        encoder = self.encoder.lipschitz().astype(growth.dtype)
        return encoder * growth * (1 + 4 * jnp.finfo(growth.dtype).eps)

    def bounds(self) -> ModelBounds:
        """What is certified of the model, from the arrays that it holds now."""
        model = measured(self)
        return ModelBounds(
            model.lipschitz(), model.encoder.lipschitz(), model.field.bounds()
        )

    def with_solver(self, solver: Solver) -> "ODEClassifier":
        """The same weights, solved by another solver."""
        return dataclasses.replace(self, solver=solver)

    def freeze(self, image: Float[Array, "height width channels"]) -> "ODEClassifier":
        """The same weights, on the steps that the adaptive solver takes for one image.

        What is certified of the result is certified of *it*: a model that takes these
        steps for every image. Nothing follows for the adaptive model, whose predictions
        may differ. Choose an image that is no test image: a grid that depended on the
        image under attack would be adaptive again.

        **Raises:** `ValueError` for a model whose steps are fixed.
        """
        return self.with_solver(self.solver.freeze(self.solution(image).schedule))

    def bake(self) -> "ODEClassifier":
        """An equal model that holds plain matrices: for inference, attacks."""
        return plain(self)


def _check_image(model: ODEClassifier, image: Array) -> None:
    if image.shape != model.image_shape:
        raise ValueError(
            f"image must have shape {model.image_shape} (height, width, channels), "
            f"not {image.shape}; map batches with jax.vmap(model)."
        )
    check_pixels(image)


def check_pixels(images: Array) -> None:
    """Raises `TypeError` for pixels that are no floating-point numbers."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            "images must hold floating-point pixels in [0, 1], not "
            f"{images.dtype}: jnode.data.to_float converts bytes."
        )
