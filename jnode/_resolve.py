"""A model's weights and its bounds, from one pass over its reparametrisations."""

from typing import Any

import jax
from jaxtyping import PyTree

from jnode.linear import AbstractLinear, measured, plain


def resolve(tree: PyTree) -> tuple[PyTree, Any]:
    """Every reparametrisation computed once: the plain weights, and what they obey.

    **Arguments:** a linear map, a vector field, a classifier, or any PyTree that holds
    some.

    **Returns:** `plain, bounds`. `plain` is an equal PyTree that holds plain matrices,
    which is quicker to call many times. `bounds` is what is certified of it: the norm
    of a map, the `Bounds` of a field, the `ModelBounds` of a classifier; of another
    PyTree a PyTree of these, with `None` for all else. It is a value with a life of its
    own: it speaks of the weights as they are now, and `plain` does not know it. If the
    plain weights are changed, ask them anew (`plain.bounds()`).

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


def _is_bounded(x):
    return isinstance(x, AbstractLinear) or callable(getattr(x, "bounds", None))
