"""Budgets of attacks: a ball around each image, intersected with [0, 1]."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, PRNGKeyArray

from jnode.attacks.norms import NORMS, Images, shortened, size, steepest, unit, wide

TOLERANCE = 1e-6
"""The tolerance for rounding when a budget is checked."""


def _as_norm(norm):
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, not {norm!r}.")
    return norm


def _as_epsilon(epsilon):
    if np.ndim(epsilon) > 1:
        raise ValueError(
            "epsilon must be a number or one number for each image, of the shape "
            f"[batch], not of the shape {tuple(np.shape(epsilon))}."
        )
    if not isinstance(epsilon, Tracer):
        values = np.asarray(epsilon)
        kinds = jnp.integer, jnp.floating
        if not any(jnp.issubdtype(values.dtype, kind) for kind in kinds):
            raise TypeError(
                f"epsilon must be a number or an array of numbers, not {epsilon!r}."
            )
        if not np.all((values >= 0) & (values < np.inf)):
            raise ValueError(f"epsilon must be at least 0 and finite, not {epsilon!r}.")
    if isinstance(epsilon, jax.Array) and jnp.issubdtype(epsilon.dtype, jnp.floating):
        return epsilon
    return jnp.asarray(epsilon, float)


class Budget(eqx.Module):
    r"""The images that an attack may return: $\|x' - x\| \le \epsilon$, $x'$ in [0, 1].

    **Arguments:**

    - `norm`: "linf", "l2" or "l1", over all pixels and channels of an image.
    - `epsilon`: in pixel units, for example 8 / 255: a number, or an array with one
        value for each image.

    **Raises:** `ValueError` for another norm, and for an epsilon that is negative, not
    finite or of several dimensions; `TypeError` for one that is no number.
    """

    norm: str = eqx.field(static=True, converter=_as_norm)
    epsilon: Float[Array, "*batch"] = eqx.field(converter=_as_epsilon)

    def of_each(self, images: Images) -> "Budget":
        """The same budget with an array of one epsilon for each image, of the images'
        dtype.

        So a number and an array compile to the same program.

        **Raises:** `ValueError` for another number of epsilons than images.
        """
        n, shape = len(images), self.epsilon.shape
        if shape not in ((), (n,)):
            raise ValueError(
                f"epsilon must be a number or one number for each of the {n} images, "
                f"not of the shape {shape}."
            )
        if isinstance(self.epsilon, Tracer):
            each = jnp.broadcast_to(self.epsilon, (n,)).astype(images.dtype)
        else:
            # In NumPy, which compiles nothing.
            each = np.broadcast_to(np.asarray(self.epsilon), (n,))
            each = jnp.asarray(each.astype(images.dtype))
        return eqx.tree_at(lambda budget: budget.epsilon, self, each)

    def project(self, adversarial: Images, images: Images) -> Images:
        """The nearest image in the ball, then clipped to [0, 1]; in L1 the nearest
        image in both.

        Clipping moves every pixel towards the original, so the result stays in the
        ball.
        """
        delta = shortened(adversarial - images, images, self.epsilon, self.norm)
        moved = jnp.clip(images + delta, 0.0, 1.0)
        if self.norm != "l1":
            return moved
        # Rounded towards the original: the rounding errors of many pixels add up.
        outside = jnp.abs(moved - images) > jnp.abs(delta)
        return jnp.where(outside, jnp.nextafter(moved, images), moved)

    def step(
        self,
        x: Images,
        gradient: Images,
        length: Float[Array, " batch"],
        images: Images,
        fraction: float | Float[Array, " batch"] = 0.0,
    ) -> Images:
        """A step of this length from `x` along which the loss grows fastest, projected.

        In L1 it moves at least this `fraction` of all pixels; other norms ignore it.
        """
        change = steepest(gradient, x, length, self.norm, fraction)
        return self.project(x + change, images)

    def random_start(self, images: Images, key: PRNGKeyArray) -> Images:
        """A random image in the ball, uniform in it before it is projected to
        [0, 1]."""
        shape, dtype = images.shape, images.dtype
        if self.norm == "linf":
            noise = jr.uniform(key, shape, dtype, -1.0, 1.0)
            return self.project(images + wide(self.epsilon) * noise, images)
        direction_key, radius_key = jr.split(key)
        direction = random_direction(images, self.norm, direction_key)
        share = jr.uniform(radius_key, (len(images), 1, 1, 1), dtype)
        radius = wide(self.epsilon) * share ** (1 / math.prod(shape[1:]))
        return self.project(images + radius * direction, images)

    def random_starts(self, images: Images, keys: Key[Array, " batch"]) -> Images:
        """As `random_start`, with a key for each image and, in `epsilon`, a number."""

        def begin(image, epsilon, key):
            alone = Budget(self.norm, epsilon[None])
            return alone.random_start(image[None], key)[0]

        return jax.vmap(begin)(images, self.epsilon, keys)

    def check(self, name: str, images: ArrayLike, adversarial: ArrayLike) -> None:
        """Checks the images of the attack `name`: in [0, 1], and in the ball.

        **Arguments:** the name; the original images and the attacked ones, both
        [batch, height, width, channels].
        **Raises:** `RuntimeError` if they are not.
        """
        images, adversarial = jnp.asarray(images), jnp.asarray(adversarial)
        low, high = float(jnp.min(adversarial)), float(jnp.max(adversarial))
        if not (low >= 0 and high <= 1):
            raise RuntimeError(f"{name} left [0, 1]: {low} to {high}.")
        moved = np.asarray(size(adversarial - images, self.norm))
        epsilon = np.broadcast_to(np.asarray(self.epsilon), moved.shape)
        inside = moved <= epsilon + TOLERANCE
        if not np.all(inside):
            i = int(np.argmin(inside))
            raise RuntimeError(
                f"{name} left its budget of {epsilon[i]:.6g} in {self.norm}: "
                f"{moved[i]:.6g}."
            )


def random_direction(images: Images, norm: str, key: PRNGKeyArray) -> Images:
    """Random perturbations of norm 1; those of L2 and L1 are uniform on the sphere."""
    noise = {"linf": _cube, "l2": jr.normal, "l1": jr.laplace}[norm]
    return unit(noise(key, images.shape, images.dtype), norm)


def _cube(key, shape, dtype):
    return jr.uniform(key, shape, dtype, -1.0, 1.0)
