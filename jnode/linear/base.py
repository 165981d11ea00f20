"""What every linear map of the package can do."""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float


class AbstractLinear(eqx.Module):
    r"""A linear map $x \mapsto Wx$ whose largest singular value can be bounded.

    A baked map takes a batch as well, its axes before the last one: `[*batch, size]`,
    or `[height, width, *batch, channels]`.

    A map may hold $W$ through a reparametrisation (a Cayley transform, say);
    `resolve` computes that once, and gives an equal map that holds plain matrices
    together with a bound on its norm. No map keeps a bound beside its weights: what is
    done to the weights afterwards could make it false.
    """

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """$Wx$."""

    @abc.abstractmethod
    def transpose(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""$W^\top x$."""

    @abc.abstractmethod
    def norm(self) -> Float[Array, ""]:
        r"""A certified upper bound on $\|W\|_2$, its rounding allowance included.

        Computed from the arrays that the map holds now; `inf` where none is known.

        **Raises:** `TypeError` for weights in half precision.
        """

    @abc.abstractmethod
    def bake(self) -> "AbstractLinear":
        """An equal map with every reparametrisation computed."""

    @abc.abstractmethod
    def resolve(self) -> tuple["AbstractLinear", Float[Array, ""]]:
        """`bake()` and `norm()` in one pass."""


class AbstractPlain(AbstractLinear):
    """A map that holds its matrix, and measures its norm when asked."""

    def resolve(self) -> tuple[AbstractLinear, Float[Array, ""]]:
        return self.bake(), self.norm()


class AbstractReparametrized(AbstractLinear):
    """A map that computes its matrix anew in each call, unless it is baked."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.bake()(x)

    def transpose(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.bake().transpose(x)

    def bake(self) -> AbstractLinear:
        return self.resolve()[0]

    def norm(self) -> Float[Array, ""]:
        return self.resolve()[1]


def check_positive(**sizes: Any) -> None:
    """Raises `ValueError` for a size that is not an integer of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be an integer of at least 1, not {size!r}.")


def check_kernel_size(kernel_size: Any) -> None:
    """Raises `ValueError` for a kernel without a centre."""
    check_positive(kernel_size=kernel_size)
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, not {kernel_size}.")


def check_choice(name: str, value: Any, known: Any) -> None:
    """Raises `ValueError` for a value that is none of those known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}.")


def check_grid(shape: tuple[int, ...], grid: tuple[int, int] | None) -> None:
    """Raises `ValueError` for a state of another grid than the map was built for."""
    if grid is not None and tuple(shape[:2]) != tuple(grid):
        raise ValueError(
            f"x must have the grid that the map was built for, height and width "
            f"{grid}, not {tuple(shape[:2])}: build the field for the states' shape."
        )
