"""Maps with a constraint, built by its name, and resolving all of them in a tree."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jnode._checks import check_choice, check_positive, check_shape
from jnode.constraints.aol import AOL
from jnode.constraints.base import AbstractConstraint, Kernel, Matrix, Resolved
from jnode.constraints.cayley import Cayley
from jnode.constraints.newton_schulz import NewtonSchulz
from jnode.constraints.sll import SLL
from jnode.constraints.spectral_rescale import SpectralRescale
from jnode.linear import AbstractLinear, Conv, Dense, SpectralConv

_BY_NAME: dict[str, Callable[[int], AbstractConstraint]] = {
    "cayley": lambda out: Cayley(),
    "rescaled": lambda out: SpectralRescale(),
    "aol": lambda out: AOL(),
    "sll": SLL,
    "newton_schulz": lambda out: NewtonSchulz(),
}
CONSTRAINTS = tuple(_BY_NAME)
"""The names of the ways to keep a map's norm at 1."""
PADDINGS = ("circular", "zero")


class Constrained(AbstractLinear):
    """A map that computes its operator from a free weight in each call.

    - `weight`: a matrix, or a convolution's kernel.
    - `constraint`: how it becomes an operator.
    - `grid`: height and width of the images that a convolution works on; `None` for a
        matrix.
    - `padding`: of a convolution, "circular" or "zero".

    `plain` and `resolve` compute the operators of all such maps in a tree once.
    """

    _jnode_fixed = ("resolve", "T", "norm")

    weight: Matrix | Kernel
    constraint: AbstractConstraint
    grid: tuple[int, int] | None = eqx.field(static=True, default=None)
    padding: str = eqx.field(static=True, default="circular")

    def resolve(self) -> Resolved:
        """The operator, and a certified upper bound on its norm."""
        if self.grid is None:
            return self.constraint.matrix(self.weight)
        return self.constraint.kernel(self.weight, self.grid, self.padding)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.resolve()[0](x)

    @property
    def T(self) -> AbstractLinear:
        return self.resolve()[0].T

    def norm(self) -> Float[Array, ""]:
        return self.resolve()[1]


def constrained(
    shape: tuple[int, ...],
    out: int,
    *,
    constraint: str | AbstractConstraint = "cayley",
    kernel_size: int = 3,
    padding: str = "circular",
    key: PRNGKeyArray,
) -> Constrained:
    """A map of norm at most 1 from states of this shape.

    **Arguments:**

    - `shape`: `(size,)` for a dense map, `(height, width, channels)` for a convolution.
    - `out`: the number of output units or channels.
    - `constraint`: "cayley" (orthogonal), "rescaled" (by its norm), "aol", "sll" (by
        row sums) or "newton_schulz" (nearly orthogonal); or a constraint of your own.
    - `kernel_size`: of a convolution's kernel: odd, at most 5 for "cayley".
    - `padding`: of a convolution: "circular", or "zero" where the constraint allows it
        (rescaled, aol, sll).
    - `key`: of the initial weights, normal (He 2015, by the larger side).

    **Raises:** `ValueError` for any of these out of its range.
    """
    *grid, inputs = check_shape(shape)
    check_positive(out=out, kernel_size=kernel_size)
    if not isinstance(constraint, AbstractConstraint):
        check_choice("constraint", constraint, CONSTRAINTS)
        constraint = _BY_NAME[constraint](out)
    larger = max(inputs, out)
    if not grid:
        weight = jr.normal(key, (out, inputs)) / larger**0.5
        return Constrained(weight, constraint)
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, not {kernel_size}.")
    check_choice("padding", padding, PADDINGS)
    weight = jr.normal(key, (kernel_size, kernel_size, out, inputs))
    weight = weight / (kernel_size * larger**0.5)
    map_ = Constrained(weight, constraint, (grid[0], grid[1]), padding)
    eqx.filter_eval_shape(map_.resolve)  # raises the constraint's errors now
    return map_


class Measured(AbstractLinear):
    """An operator with the bound on its norm from the same pass.

    It lives within one computation that needs the bound more than once. Users never get
    one, since edited weights would make the bound false.
    """

    map: AbstractLinear
    bound: Float[Array, "*stack"]

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.map(x)

    @property
    def T(self) -> AbstractLinear:
        return Measured(self.map.T, self.bound)

    def norm(self) -> Float[Array, "*stack"]:
        return self.bound

    def __getattr__(self, name: str) -> Any:
        # A user's formula may read what the operator holds, such as its matrix.
        if name.startswith("_") or name == "map":
            raise AttributeError(name)
        return getattr(self.map, name)


def plain(tree: PyTree) -> PyTree:
    """An equal PyTree in which every constrained map is a plain operator.

    **Arguments:** any PyTree: a map, a field, a classifier, a module of your own that
    holds some of these, a list of them, or maps stacked by `jax.vmap`.
    """

    def one(x):
        return x.map if isinstance(x, Measured) else x

    leaves, structure = jax.tree.flatten(tree, is_leaf=_is_held)
    leaves = _resolved(lambda operator, bound: operator, leaves)
    return jax.tree.unflatten(structure, map(one, leaves))


def measured(tree: PyTree) -> PyTree:
    """As `plain`, but each operator keeps the bound from the same pass.

    The result serves one computation. It is not to be edited or trained: its bounds
    would stay as they are. Operators that are not this package's are left alone, and
    measure themselves.
    """

    def one(x):
        return Measured(x, _norms(x)) if _is_operator(x) else x

    stop = lambda x: _is_held(x) or _is_operator(x)  # noqa: E731
    leaves, structure = jax.tree.flatten(tree, is_leaf=stop)
    leaves = _resolved(Measured, leaves)
    return jax.tree.unflatten(structure, map(one, leaves))


def resolve(tree: PyTree) -> tuple[PyTree, Any]:
    """Computes every constrained map once: the plain weights and their certified
    bounds.

    **Arguments:** a linear map, a vector field, a classifier, or any PyTree that holds
    some.

    **Returns:** `plain, bounds`. `plain` is an equal PyTree that holds plain matrices,
    which is faster to call many times. `bounds` is what is certified of it: the norm of
    a map, the `Bounds` of a field, the `ModelBounds` of a classifier; for another
    PyTree, a PyTree of these with `None` for all else. `bounds` is a separate value
    that refers to the weights as they are now. After a change of the plain weights,
    compute it again (`plain.bounds()`).

    Differentiable, so that a loss may use both halves.

    **Raises:** `TypeError` for constrained weights in half precision.
    """
    whole = measured(tree)
    return plain(whole), _bounds(whole)


def _bounds(tree):
    if _is_bounded(tree):
        return tree.norm() if isinstance(tree, AbstractLinear) else tree.bounds()
    return jax.tree.map(
        lambda x: _bounds(x) if _is_bounded(x) else None, tree, is_leaf=_is_bounded
    )


def _resolved(function, leaves):
    """These leaves with `function` of operator and bound in place of the constrained
    maps among them.

    Maps of one kind are computed as one stack, which compiles as fast as one map.
    """
    kinds: list[tuple[tuple, list[int]]] = []
    for i, x in enumerate(leaves):
        if isinstance(x, Constrained):
            places = [places for kind, places in kinds if kind == _kind(x)]
            places[0].append(i) if places else kinds.append((_kind(x), [i]))
    found = list(leaves)
    for _, places in kinds:
        first, *others = (leaves[i] for i in places)
        if not others:
            found[places[0]] = function(*_operators(first))
            continue
        many = _each(lambda x, *xs: jnp.stack([x, *xs]), first, *others)
        both = _operators(many)
        for n, i in enumerate(places):
            found[i] = function(*_each(lambda x, n=n: x[n], both))
    return found


def _kind(map_):
    """What two maps must share to be computed as one stack."""
    leaves, structure = jax.tree.flatten(map_)
    return structure, [(x.shape, x.dtype) if _has_shape(x) else x for x in leaves]


def _each(function, tree, *others):
    """`function` of the arrays of equal trees; what is no array is left as it is."""
    return jax.tree.map(
        lambda x, *xs: function(x, *xs) if _has_shape(x) else x, tree, *others
    )


def _has_shape(x):
    return isinstance(x, jax.Array | np.ndarray)


def _is_bounded(x):
    return isinstance(x, AbstractLinear) or callable(getattr(x, "bounds", None))


def _is_held(x):
    return isinstance(x, (Constrained, Measured))


def _is_operator(x):
    return type(x) in _AXES


# An array of each kind of operator, and how many axes it has.
_AXES = {Dense: ("matrix", 2), Conv: ("kernel", 4), SpectralConv: ("real", 3)}


def _operators(map_: Constrained):
    """The operators of a stack of maps, such as the segments of a field in time or the
    members of an ensemble, and their bounds; of one map, if it is not a stack."""
    axes = 2 if map_.grid is None else 4
    stack = map_.weight.shape[: map_.weight.ndim - axes]
    if not stack:
        return map_.resolve()
    flat = _each(lambda x: x.reshape(-1, *x.shape[len(stack) :]), map_)
    if map_.grid is None:
        found = eqx.filter_vmap(Constrained.resolve)(flat)
    else:
        found = flat.constraint.kernels(flat.weight, map_.grid, map_.padding)
    return _each(lambda x: x.reshape(*stack, *x.shape[1:]), found)


def _norms(map_):
    """The bound on the norm of an operator, or of each in a stack of them."""
    name, axes = _AXES[type(map_)]
    norm = lambda m: m.norm()  # noqa: E731
    for _ in range(getattr(map_, name).ndim - axes):
        norm = eqx.filter_vmap(norm)
    return norm(map_)
