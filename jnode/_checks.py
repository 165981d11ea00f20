"""Checks of arguments that several subpackages share."""

from typing import Any


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
    shape = tuple(shape)
    if len(shape) not in (1, 3):
        raise ValueError(
            f"shape must be (size,) or (height, width, channels), not {shape}."
        )
    names = ("size",) if len(shape) == 1 else ("height", "width", "channels")
    check_positive(**dict(zip(names, shape, strict=True)))
    return shape
