"""Every reparametrisation in a PyTree computed once, and what it bounds."""

from typing import Any

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


class AbstractStack(eqx.Module):
    """A module that holds several others, alike but for their arrays, leaf by leaf
    stacked along a first axis."""

    pieces: eqx.AbstractVar[Any]


def _each_map(tree: PyTree, change) -> PyTree:
    """The tree with `change` of each of its linear maps, stacked ones by `vmap`."""

    def one(x):
        if isinstance(x, AbstractLinear):
            return change(x)
        if isinstance(x, AbstractStack):
            pieces = eqx.filter_vmap(lambda piece: _each_map(piece, change))(x.pieces)
            return eqx.tree_at(lambda s: s.pieces, x, pieces)
        return x

    whole = lambda x: isinstance(x, (AbstractLinear, AbstractStack))  # noqa: E731
    return jax.tree.map(one, tree, is_leaf=whole)


def plain(tree: PyTree) -> PyTree:
    """An equal PyTree in which every reparametrisation is computed.

    **Arguments:** anything: a map, a field, a classifier, a module of your own that
    holds some of these, a list of them.
    """
    return _each_map(tree, lambda map_: map_.bake())


def measured(tree: PyTree) -> PyTree:
    """As `plain`, but that each map remembers the bound of the same pass."""
    return _each_map(tree, lambda map_: Measured(*map_.resolve()))
