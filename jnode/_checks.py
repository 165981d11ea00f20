"""Checks of arguments that several subpackages share."""

import itertools
from typing import Any, ClassVar

import equinox as eqx


class Fixed(eqx.Module):
    """A module on whose methods named in `_jnode_fixed`, of its class and those above,
    bounds and faster forms rely.

    A subclass may implement them, if they are abstract, but not override them.

    **Raises:** `TypeError` where such a subclass is defined.
    """

    _jnode_fixed: ClassVar[tuple[str, ...]] = ("__call__",)

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        names = (vars(x).get("_jnode_fixed", ()) for x in cls.__mro__)
        for name in dict.fromkeys(itertools.chain(*names)):
            found = [(x, vars(x)[name]) for x in cls.__mro__ if name in vars(x)]
            whole = [x for x, f in found if not getattr(f, "__isabstractmethod__", 0)]
            if len(whole) > 1:
                raise TypeError(
                    f"{cls.__name__} must not override {name} of {whole[1].__name__}: "
                    "its bounds and faster forms would go on describing the other one. "
                    "Write a class of its own that holds the original."
                )


def check_positive(**sizes: Any) -> None:
    """Raises `ValueError` for a size that is not an integer of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be an integer of at least 1, not {size!r}.")


def check_choice(name: str, value: Any, known: Any) -> None:
    """Raises `ValueError` for a value that is none of those known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}.")


def check_rate(name: str, value: float) -> float:
    """Raises `ValueError` for a rate that is not a finite number of at least 0."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least 0, not {value}.")
    return float(value)


def check_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A state's shape: `(size,)`, or `(height, width, channels)`."""
    if not isinstance(shape, tuple | list) or len(shape) not in (1, 3):
        raise ValueError(
            f"shape must be (size,) or (height, width, channels), not {shape!r}."
        )
    shape = tuple(shape)
    names = ("size",) if len(shape) == 1 else ("height", "width", "channels")
    check_positive(**dict(zip(names, shape, strict=True)))
    return shape
