"""Every reparametrisation in a PyTree computed once, and what it bounds."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from jnode.linear.base import AbstractLinear


class Measured(AbstractLinear):
    """A baked map beside the bound on its norm that the same pass gave.

    For the length of one computation that asks for the bound more than once. It is not
    given to users: edited weights would make the bound false.
    """

    map: AbstractLinear
    bound: Float[Array, ""]

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.map(x)

    def transpose(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.map.transpose(x)

    def norm(self) -> Float[Array, ""]:
        return self.bound

    def bake(self) -> AbstractLinear:
        return self.map

    def resolve(self) -> tuple[AbstractLinear, Float[Array, ""]]:
        return self.map, self.bound


def _each_map(tree: PyTree, change) -> PyTree:
    """The tree with `change` of each of its linear maps, stacked ones by `vmap`."""

    def one(x):
        if not isinstance(x, AbstractLinear):
            return x
        whole = change
        for _ in range(_stacked_axes(x)):  # pieces in time, members of an ensemble
            whole = eqx.filter_vmap(whole)
        return whole(x)

    is_map = lambda x: isinstance(x, AbstractLinear)  # noqa: E731
    return jax.tree.map(one, tree, is_leaf=is_map)


# The axes of what each kind of map holds.
_AXES = {"weight": 2, "matrix": 2, "kernel": 4, "real": 3}


def _stacked_axes(map_: AbstractLinear) -> int:
    """How many axes in front a map has, of members that are stacked leaf by leaf."""
    if not type(map_).__module__.startswith("jnode."):
        return 0  # nobody knows how many it should have
    for name, axes in _AXES.items():
        if hasattr(map_, name):
            return getattr(map_, name).ndim - axes
    inner = [getattr(map_, "map", None), *getattr(map_, "maps", ())]
    return max((_stacked_axes(x) for x in inner if x is not None), default=0)


def plain(tree: PyTree) -> PyTree:
    """An equal PyTree in which every reparametrisation is computed.

    **Arguments:** anything: a map, a field, a classifier, a module of your own that
    holds some of these, a list of them.
    """
    return _each_map(tree, lambda map_: map_.bake())


def measured(tree: PyTree) -> PyTree:
    """As `plain`, but that each map remembers the bound of the same pass."""
    return _each_map(tree, lambda map_: Measured(*map_.resolve()))
