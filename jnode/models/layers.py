"""The layers of a model: maps from state to state with known Lipschitz constants."""

import abc
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jnode._checks import Fixed, check_positive
from jnode.bounds import Bounds
from jnode.certify.amplification import amplifications
from jnode.fields import AbstractVectorField
from jnode.fields.base import add_bias, bias_gain, time_invariant
from jnode.fields.two_layer import channels_first
from jnode.linear import AbstractLinear, SpaceToDepth
from jnode.linear.conv import convolve
from jnode.solvers import Solver, solve, trajectory


class AbstractLayer(Fixed):
    """A map from one sample's state to its next state.

    `affine` tells whether its Jacobian is the same everywhere.
    """

    affine: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The next state."""

    @abc.abstractmethod
    def lipschitz(self) -> Float[Array, ""]:
        """A certified upper bound on the layer's L2 Lipschitz constant, or `inf`.

        It is computed from the arrays that the layer holds now.
        """


def check_solver(solver: Any) -> None:
    """Raises `TypeError` unless a model can be solved by it."""
    if not isinstance(solver, Solver):
        raise TypeError(
            f"solver of a model must be a jnode.Solver, not {type(solver).__name__}; "
            "jnode.solve takes the solvers of Diffrax."
        )


class ODEBlock(AbstractLayer):
    r"""The end of a trajectory: $y(t_1)$ of $dy/dt = f(t, y)$ with $y(t_0) = x$.

    The numerical solve itself is what is evaluated, attacked and certified.
    """

    affine: ClassVar[bool] = False
    _jnode_fixed = ("lipschitz", "amplifications", "bias_gain", "bounds_of_segments")

    field: AbstractVectorField
    solver: Solver = eqx.field(static=True)
    t0: float = eqx.field(static=True)
    t1: float = eqx.field(static=True)

    def __init__(
        self,
        field: AbstractVectorField,
        solver: Solver,
        t0: float = 0.0,
        t1: float = 1.0,
    ):
        """**Arguments:** the vector field, the solver, and the interval of time.

        **Raises:** `ValueError` for an interval that is empty or not finite;
        `TypeError` for a solver of Diffrax, which `jnode.solve` takes.
        """
        check_solver(solver)
        if not -math.inf < t0 < t1 < math.inf:
            raise ValueError(
                f"t1 must be finite and greater than t0, not {t1} for t0 = {t0}."
            )
        self.field, self.solver = field, solver
        self.t0, self.t1 = float(t0), float(t1)

    def __call__(self, x: Float[Array, "*state"]) -> Float[Array, "*state"]:
        """**Raises:** at run time, as `jnode.solve`."""
        return solve(self.field, x, self.solver, t0=self.t0, t1=self.t1).y

    def trajectory(
        self, x: Float[Array, "*state"]
    ) -> tuple[Float[np.ndarray, " times"], Float[Array, " times *state"]]:
        """The times and states along the solve (see `jnode.solvers.trajectory`)."""
        return trajectory(self.field, x, self.solver, t0=self.t0, t1=self.t1)

    def lipschitz(self) -> Float[Array, ""]:
        """The constant of the numerical solve; `inf` for adaptive solvers, free fields
        and functions without bounds."""
        return self.amplifications()[0]

    def amplifications(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """`lipschitz`, and by how much an error made in the solve can have grown at
        its end (see `jnode.certify.amplification.amplifications`)."""
        if not isinstance(self.field, AbstractVectorField):
            return jnp.asarray(jnp.inf), jnp.asarray(jnp.inf)
        return amplifications(self.field, self.solver, t0=self.t0, t1=self.t1)

    def bias_gain(self) -> Float[Array, ""]:
        """A bound on how much a bias of the field counts in a step, at least 1."""
        gain = jnp.asarray(1.0)
        if not isinstance(self.field, AbstractVectorField):
            return gain
        schedule = self.solver.plan(self.field, self.t0, self.t1)
        for k, part in enumerate(schedule.parts):
            longest = float(np.max(np.abs(part.lengths[0])))
            gain = jnp.maximum(gain, longest * bias_gain(schedule.at(self.field, k)))
        if not time_invariant(self.field):  # there are coefficients of the time
            gain = gain * max(1.0, abs(self.t0), abs(self.t1))
        return gain

    def bounds_of_segments(self) -> tuple[Bounds, ...]:
        """The bounds of the field in each segment of time between its jumps."""
        if not isinstance(self.field, AbstractVectorField):
            return (Bounds(jnp.inf),)
        schedule = self.solver.plan(self.field, self.t0, self.t1)
        segments = [schedule.at(self.field, k) for k in range(schedule.count)]
        return tuple(segment.bounds() for segment in segments)

    def freeze(self, x: Float[Array, "*state"]) -> Solver:
        """The steps that the adaptive solver takes from `x`, as a fixed-step solver.

        **Raises:** `ValueError` for a solver whose steps are fixed.
        """
        solution = solve(self.field, x, self.solver, t0=self.t0, t1=self.t1)
        return self.solver.freeze(solution.schedule)


class Lift(AbstractLayer):
    """From an image to a state, by space-to-depth and zero channels: an isometry.

    A block of `patch` by `patch` pixels becomes one position whose channels are the
    block's pixels, then channels of zeros are added up to `features`. Pixels are
    centred at one half.
    """

    affine: ClassVar[bool] = True

    patch: int = eqx.field(static=True)
    features: int = eqx.field(static=True)

    def __init__(self, image_shape: tuple[int, int, int], *, patch: int, features: int):
        """**Arguments:** the image's shape, the block's side, and the state's channels.

        **Raises:** `ValueError` if `patch` does not divide both sides, or `features` is
        less than the number of values in a block.
        """
        check_positive(patch=patch, features=features)
        height, width, channels = image_shape
        if height % patch or width % patch:
            raise ValueError(
                f"patch must divide the image's sides, {height} and {width}, "
                f"which {patch} does not."
            )
        if features < patch * patch * channels:
            raise ValueError(
                f"features must be at least patch * patch * channels = "
                f"{patch * patch * channels}, not {features}."
            )
        self.patch = patch
        self.features = features

    def __call__(
        self, x: Float[Array, "height width channels"]
    ) -> Float[Array, "rows columns features"]:
        blocks = SpaceToDepth(self.patch)(x - 0.5)
        return jnp.pad(blocks, ((0, 0), (0, 0), (0, self.features - blocks.shape[-1])))

    def lipschitz(self) -> Float[Array, ""]:
        return jnp.asarray(1.0)


class ConvEncoder(AbstractLayer):
    """The free encoder of the ODENet literature (Chen et al., NeurIPS 2018).

    A 3x3 convolution, then two 4x4 convolutions of stride 2, with group norm and relu
    between them. Its Lipschitz constant is not bounded.
    """

    affine: ClassVar[bool] = False

    convs: tuple[eqx.nn.Conv2d, ...]
    norms: tuple[eqx.nn.GroupNorm, ...]

    def __init__(
        self, image_shape: tuple[int, int, int], *, features: int, key: PRNGKeyArray
    ):
        """**Arguments:** the image's shape, the state's channels, and a key.

        **Raises:** `ValueError` for an odd number of channels.
        """
        check_positive(features=features)
        if features % 2:
            raise ValueError(f"features must be even for group norm, not {features}.")
        keys = jr.split(key, 3)
        channels = image_shape[-1]
        self.convs = (
            eqx.nn.Conv2d(channels, features, 3, 1, 1, key=keys[0]),
            eqx.nn.Conv2d(features, features, 4, 2, 1, key=keys[1]),
            eqx.nn.Conv2d(features, features, 4, 2, 1, key=keys[2]),
        )
        groups = next(g for g in (16, 8, 4, 2, 1) if features % (2 * g) == 0)
        self.norms = tuple(eqx.nn.GroupNorm(groups, features) for _ in range(2))

    def __call__(
        self, x: Float[Array, "height width channels"]
    ) -> Float[Array, "rows columns features"]:
        x = _convolved(self.convs[0], x - 0.5)
        for norm, conv in zip(self.norms, self.convs[1:], strict=True):
            x = _convolved(conv, jax.nn.relu(channels_first(norm, x)))
        return x

    def lipschitz(self) -> Float[Array, ""]:
        return jnp.asarray(jnp.inf)


def _convolved(conv: eqx.nn.Conv2d, x: Float[Array, "height width channels"]):
    assert conv.bias is not None and not isinstance(conv.padding, str)
    kernel = conv.weight.transpose(2, 3, 1, 0)
    y = convolve(x[None], kernel, conv.stride, conv.padding)[0]
    return add_bias(y, conv.bias[:, 0, 0])


class Linear(AbstractLayer):
    """A linear map of `jnode.linear`: `Linear(SpaceToDepth(2))` halves the grid."""

    affine: ClassVar[bool] = True

    map: AbstractLinear

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.map(x)

    def lipschitz(self) -> Float[Array, ""]:
        return self.map.norm()


class PositionBias(AbstractLayer):
    """$x + b$: a learned bias for each entry of the state, which starts at 0.

    `bias` is held as a vector, in the order of the ravelled state.
    """

    affine: ClassVar[bool] = True

    bias: Float[Array, " size"]

    def __init__(self, shape: tuple[int, ...]):
        """**Arguments:** the state's shape."""
        self.bias = jnp.zeros(math.prod(shape))

    def __call__(self, x: Float[Array, "*state"]) -> Float[Array, "*state"]:
        return x + self.bias.reshape(x.shape).astype(x.dtype)

    def lipschitz(self) -> Float[Array, ""]:
        return jnp.ones((), self.bias.dtype)


class Flatten(AbstractLayer):
    """The state as a vector, as fields with dense maps need it."""

    affine: ClassVar[bool] = True

    def __call__(self, x: Float[Array, "*state"]) -> Float[Array, " size"]:
        return x.ravel()

    def lipschitz(self) -> Float[Array, ""]:
        return jnp.asarray(1.0)
