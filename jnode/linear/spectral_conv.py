"""Circular convolutions as one matrix for each frequency of a small grid.

The two-dimensional real Fourier transform is one matrix product. At grids of 6x6 to
16x16 this beats the FFT several times over, and it needs no complex numbers.
Frequencies come in conjugate pairs, of which one is kept.
"""

import functools

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jnode.bounds import gamma, unit_roundoff
from jnode.linear.gram import ITERATIONS, embed, gram_iteration, norm_bound
from jnode.linear.operators import AbstractLinear, AbstractPlain
from jnode.linear.products import matmul, spectral_product


class SpectralConv(AbstractPlain):
    r"""A convolution, given by one complex matrix for each frequency.

    $x \mapsto F^\top B F x$ with the isometric transform $F$ of `transform` and $B$
    block-diagonal. Circular; with a `margin` of the kernel's radius it is zero-padded,
    a part of the circular one on a larger grid.

    **Raises:** `ValueError` for a negative margin.
    """

    # Stored transposed and as separate parts, as they are used: inside a solver's loop,
    # gradients are summed in the layout of the stored arrays.
    real: Float[Array, " frequencies in out"]
    imaginary: Float[Array, " frequencies in out"]
    grid: tuple[int, int] = eqx.field(static=True)
    margin: int = eqx.field(static=True, default=0)

    @classmethod
    def from_column(
        cls,
        column: Float[Array, "frequencies twice_out in"],
        grid: tuple[int, int],
        margin: int = 0,
    ) -> "SpectralConv":
        """From the blocks of $B$ in column form (see `jnode.linear.gram`)."""
        real, imaginary = (part.mT for part in jnp.split(column, 2, axis=-2))
        return cls(real, imaginary, grid, margin)

    def __check_init__(self):
        if self.margin < 0:
            raise ValueError(f"margin must be at least 0, not {self.margin}.")

    @property
    def column(self) -> Float[Array, "frequencies twice_out in"]:
        """The blocks in column form."""
        return jnp.concatenate([self.real.mT, self.imaginary.mT], axis=-2)

    def __call__(
        self, x: Float[Array, "height width *batch in"]
    ) -> Float[Array, "height width *batch out"]:
        check_grid(x.shape, self.grid)
        # The batch axes, if any, lie between grid and channels, so that no axis has to
        # move.
        f = jnp.asarray(transform(*self.grid, self.margin), x.dtype)
        flat = x.reshape(f.shape[2], -1, x.shape[-1])
        padded = self.margin > 0
        out = spectral_product(f, self.real, self.imaginary, flat, padded=padded)
        return out.reshape(*x.shape[:-1], self.real.shape[-1])

    @property
    def T(self) -> "SpectralConv":
        return SpectralConv(self.real.mT, -self.imaginary.mT, self.grid, self.margin)

    def norm(self) -> Float[Array, ""]:
        period = (self.grid[0] + self.margin, self.grid[1] + self.margin)
        return norm_bound(self.column) * transform_slack(period, self.real.dtype)

    def times(self, inner: AbstractLinear) -> "SpectralConv | None":
        if not isinstance(inner, SpectralConv) or self.grid != inner.grid:
            return None
        if self.margin or inner.margin:  # restrictions do not compose
            return None
        column = matmul(embed(self.column), inner.column)
        return SpectralConv.from_column(column, self.grid)


def embedded(map_: SpectralConv) -> Float[Array, "frequencies two_in two_out"]:
    """A convolution's complex matrices as real ones, real parts before imaginary ones,
    that are multiplied from the right."""
    upper = jnp.concatenate([map_.real, map_.imaginary], axis=-1)
    lower = jnp.concatenate([-map_.imaginary, map_.real], axis=-1)
    return jnp.concatenate([upper, lower], axis=-2)


def check_grid(shape: tuple[int, ...], grid: tuple[int, int] | None) -> None:
    """Raises `ValueError` for a state of another grid than the map was built for."""
    if grid is not None and tuple(shape[:2]) != tuple(grid):
        raise ValueError(
            f"x must have the grid that the map was built for, height and width "
            f"{grid}, not {tuple(shape[:2])}: build the field for the states' shape."
        )


def check_circular(padding: str) -> None:
    """Raises `ValueError` for another padding than "circular"."""
    if padding != "circular":
        raise ValueError(
            "padding must be 'circular' for a constraint that acts on each frequency "
            f"(cayley, newton_schulz), not {padding!r}: with another, choose "
            "constraint rescaled, aol or sll."
        )


def half_plane(height: int, width: int) -> list[tuple[int, int, bool]]:
    """One frequency of each conjugate pair, and whether it is its own conjugate."""
    kept = []
    for k in range(height):
        for m in range(width):
            mirror = ((-k) % height, (-m) % width)
            if (k, m) <= mirror:
                kept.append((k, m, (k, m) == mirror))
    return kept


@functools.cache
def transform(
    height: int, width: int, margin: int = 0
) -> Float[np.ndarray, "part frequencies grid"]:
    r"""The transform $F$ of a flattened grid, real parts and imaginary, $F^T F = I$.

    Its origin is the middle of the grid, so that real parts are even and imaginary
    parts odd: a position and the one opposite, last for first, have the same weight up
    to its sign. With a `margin` the grid is extended by that many rows and columns of
    zeros.
    """
    rows, columns = np.arange(height), np.arange(width)
    period = (height + margin, width + margin)
    angles = _angles(period, rows - (height - 1) / 2, columns - (width - 1) / 2)
    shares = [1 if alone else 2 for *_, alone in half_plane(*period)]
    scale = np.sqrt(np.asarray(shares) / (period[0] * period[1]))[:, None]
    return np.stack([scale * np.cos(angles), -scale * np.sin(angles)])


@functools.cache
def kernel_transform(
    height: int, width: int, size: int
) -> Float[np.ndarray, "part frequencies taps"]:
    r"""Real and imaginary part of $e^{i\langle k, u\rangle}$ for centred taps $u$.

    Applied to a kernel's taps it gives the matrices by which a circular
    cross-correlation (the convolution of deep learning) acts on each frequency.
    """
    taps = np.arange(size) - size // 2
    angles = _angles((height, width), taps, taps)
    return np.stack([np.cos(angles), np.sin(angles)])


def _angles(period, rows, columns):
    """The angle of each frequency at each position of a flattened grid."""
    rows, columns = np.meshgrid(rows, columns, indexing="ij")
    return np.asarray(
        [
            2 * np.pi * (k * rows / period[0] + m * columns / period[1]).ravel()
            for k, m, _ in half_plane(*period)
        ]
    )


def kernel_spectrum(
    kernel: Float[Array, "size size out in"], grid: tuple[int, int]
) -> Float[Array, "frequencies twice_out in"]:
    """The matrices, in column form, by which a kernel acts on each frequency."""
    size, _, rows, columns = kernel.shape
    taps = kernel.reshape(size * size, rows * columns)
    parts = (
        matmul(jnp.asarray(part, kernel.dtype), taps)
        for part in kernel_transform(*grid, size)
    )
    return jnp.concatenate([p.reshape(-1, rows, columns) for p in parts], axis=1)


def circular_period(size: int, grid: tuple[int, int], padding: str) -> tuple[int, int]:
    """The circular grid whose convolution bounds the norm of this kernel's.

    A zero-padded convolution is a restriction of the circular one on a grid enlarged by
    the kernel's radius, so its norm is no larger.
    """
    margin = size // 2 if padding == "zero" else 0
    return (grid[0] + margin, grid[1] + margin)


def kernel_norm(
    kernel: Float[Array, "size size out in"],
    grid: tuple[int, int],
    padding: str,
    iterations: int = ITERATIONS,
) -> Float[Array, ""]:
    """A certified upper bound on the spectral norm of a kernel's convolution.

    The largest over all frequencies, each by Gram iteration (Delattre et al., ICML
    2023). For circular padding this is the exact norm up to that iteration's error.
    """
    period = circular_period(kernel.shape[0], grid, padding)
    norms = gram_iteration(kernel_spectrum(kernel, period), iterations)
    return jnp.max(norms) + spectrum_slack(kernel)


def transform_slack(grid: tuple[int, int], dtype) -> float:
    r"""A bound on the norm of $F^\top$ times that of $F$, both rounded.

    Entries of $F$ err by $u$ relative to themselves, so $F$ errs by at most
    $u\|F\|_F = u\sqrt{n}$ in norm.
    """
    u = unit_roundoff(dtype)
    return (1 + u * (grid[0] * grid[1]) ** 0.5) ** 2


def spectrum_slack(kernel: Float[Array, "size size out in"]) -> Float[Array, ""]:
    r"""How far rounding may move a frequency's matrix from the kernel's true one.

    An entry errs by $\gamma_{s^2}\sum_u |k_u|$, hence the matrix by
    $\gamma_{s^2}\,s\,\|k\|_F$ in norm.
    """
    size = kernel.shape[0]
    # The smallest addend keeps the derivative finite at a kernel of zeros.
    tiny = jnp.asarray(jnp.finfo(kernel.dtype).tiny * 1e6, kernel.dtype)
    frobenius = jnp.sqrt(jnp.sum(kernel**2) + tiny)
    return 2 * gamma(size**2 + 8, kernel.dtype) * size * frobenius
