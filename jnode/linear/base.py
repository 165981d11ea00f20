"""What every linear map of the package can do."""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float


class AbstractLinear(eqx.Module):
    r"""A linear map $x \mapsto Wx$ whose largest singular value is known.

    A baked map takes a batch as well, its axes before the last one: `[*batch, size]`,
    or `[height, width, *batch, channels]`.

    A map may hold $W$ through a reparametrisation (a Cayley transform, say);
    `bake` computes that once and gives an equal map that holds plain matrices.
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

        `inf` where none is known.
        """

    @abc.abstractmethod
    def bake(self) -> "AbstractLinear":
        """An equal map with every reparametrisation computed."""


class AbstractReparametrized(AbstractLinear):
    """A map that computes its matrix anew in each call, unless it is baked."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.bake()(x)

    def transpose(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.bake().transpose(x)

    def norm(self) -> Float[Array, ""]:
        return self.bake().norm()


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
