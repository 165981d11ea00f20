"""Circular convolutions that act on each frequency of a small grid by a matrix."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from jnode.bounds import gamma, unit_roundoff
from jnode.linear import fourier
from jnode.linear.base import (
    AbstractPlain,
    AbstractReparametrized,
    check_grid,
    check_kernel_size,
    check_positive,
)
from jnode.linear.cayley import adjoint, cayley
from jnode.linear.gram import gram_iteration, isometry_norm, norm_bound


def _by_parts(f, real, imaginary, x):
    """Half the transform's products, as it is even and odd; and real products of two
    parts each, which XLA's CPU backend runs side by side."""
    _, frequencies, positions = f.shape
    half, batch = positions // 2, x.shape[1]
    even, odd = f[0, :, : positions - half], f[1, :, :half]
    flat = x.reshape(positions, -1)
    first, last = flat[:half], flat[positions - half :][::-1]
    middle = flat[half : positions - half]
    re = _matmul(even, jnp.concatenate([first + last, middle]))
    im = _matmul(odd, first - last)
    re, im = (part.reshape(frequencies, batch, -1) for part in (re, im))
    re, im = _complex_product(re, im, real, imaginary)
    same = _matmul(even.T, re)
    turned = _matmul(odd.T, im)
    first, middle = same[:half], same[half:]
    out = jnp.concatenate([first + turned, middle, (first - turned)[::-1]])
    return out.reshape(positions, batch, -1)


def _whole(f, real, imaginary, x):
    """As `_by_parts`, with all of the transform's products. Few positions make them
    cheaper than what XLA's CPU backend makes of sums of turned rows: it computes all
    that leads to them once for each of them, if no gradient of a weight asks for it."""
    _, frequencies, positions = f.shape
    flat = x.reshape(positions, -1)
    re, im = (_matmul(part, flat).reshape(frequencies, x.shape[1], -1) for part in f)
    re, im = _complex_product(re, im, real, imaginary)
    return (_matmul(f[0].T, re) + _matmul(f[1].T, im)).reshape(*x.shape[:2], -1)


def _complex_product(re, im, real, imaginary):
    """Parts of the products of each frequency, flat."""
    out = (
        _matmul(re, real) - _matmul(im, imaginary),
        _matmul(re, imaginary) + _matmul(im, real),
    )
    return (part.reshape(len(re), -1) for part in out)


def _embedded(f, real, imaginary, x):
    """One product for both parts, its layouts left to the compiler: best on TPU."""
    blocks = jnp.stack(
        [
            jnp.stack([real, imaginary], axis=2),
            jnp.stack([-imaginary, real], axis=2),
        ],
        axis=1,
    )
    spectrum = jnp.einsum("pfs,sbi->fbpi", f, x, precision="highest")
    out = jnp.einsum("fbpi,fpiqo->fbqo", spectrum, blocks, precision="highest")
    return jnp.einsum("qfs,fbqo->sbo", f, out, precision="highest")


def _matmul(a, b):
    return jnp.matmul(a, b, precision="highest")


class SpectralConv(AbstractPlain):
    r"""A convolution, given by one complex matrix a frequency.

    $x \mapsto F^\top B F x$ with the isometric transform $F$ of `fourier.transform`
    and $B$ block-diagonal. Circular; with a `margin` of the kernel's radius it is
    zero-padded, a part of the circular one on a larger grid.
    """

    # Transposed and apart, as they are used: inside a solver's loop gradients are
    # summed as they are kept.
    real: Float[Array, "frequencies in out"]
    imaginary: Float[Array, "frequencies in out"]
    grid: tuple[int, int] = eqx.field(static=True)
    margin: int = eqx.field(static=True)

    def __init__(
        self,
        column: Float[Array, "frequencies twice_out in"],
        grid: tuple[int, int],
        margin: int = 0,
    ):
        """**Arguments:** the blocks of $B$ in column form (see `cayley`), the grid, and
        the margin."""
        self.real, self.imaginary = (p.mT for p in jnp.split(column, 2, axis=-2))
        self.grid, self.margin = grid, margin

    @property
    def column(self) -> Float[Array, "frequencies twice_out in"]:
        """The blocks in column form."""
        return jnp.concatenate([self.real.mT, self.imaginary.mT], axis=-2)

    def _apply(self, real, imaginary, x):
        check_grid(x.shape, self.grid)
        # The batch, if there is one, lies between grid and channels, so that no axis
        # has to move.
        f = jnp.asarray(fourier.transform(*self.grid, self.margin), x.dtype)
        flat = x.reshape(f.shape[2], -1, x.shape[-1])
        parts = _whole if len(flat) < 64 and self.margin == 0 else _by_parts
        out = jax.lax.platform_dependent(
            f, real, imaginary, flat, cpu=parts, default=_embedded
        )
        return out.reshape(*x.shape[:-1], real.shape[-1])

    def __call__(
        self, x: Float[Array, "height width *batch in"]
    ) -> Float[Array, "height width *batch out"]:
        return self._apply(self.real, self.imaginary, x)

    def transpose(
        self, x: Float[Array, "height width *batch out"]
    ) -> Float[Array, "height width *batch in"]:
        return self._apply(self.real.mT, -self.imaginary.mT, x)

    def norm(self) -> Float[Array, ""]:
        period = (self.grid[0] + self.margin, self.grid[1] + self.margin)
        return norm_bound(self.column) * transform_slack(period, self.real.dtype)

    def bake(self) -> "SpectralConv":
        return self


def kernel_spectrum(
    kernel: Float[Array, "size size out in"], grid: tuple[int, int]
) -> Float[Array, "frequencies twice_out in"]:
    """The matrices, in column form, by which a kernel acts on each frequency."""
    size, _, rows, columns = kernel.shape
    taps = kernel.reshape(size * size, rows * columns)
    parts = (
        jnp.matmul(jnp.asarray(part, kernel.dtype), taps, precision="highest")
        for part in fourier.kernel_transform(*grid, size)
    )
    return jnp.concatenate([p.reshape(-1, rows, columns) for p in parts], axis=1)


def transform_slack(grid: tuple[int, int], dtype) -> float:
    r"""By how much the rounded transform $F$ and its transpose may stretch together.

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


class CircularConv(AbstractReparametrized):
    """An unconstrained circular convolution, baked to its form on each frequency."""

    kernel: Float[Array, "size size out in"]
    grid: tuple[int, int] = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        grid: tuple[int, int],
        kernel_size: int = 3,
        key: PRNGKeyArray,
    ):
        """**Arguments:** as `CayleyConv`, for any odd `kernel_size`."""
        check_positive(in_channels=in_channels, out_channels=out_channels)
        check_kernel_size(kernel_size)
        shape = (kernel_size, kernel_size, out_channels, in_channels)
        self.kernel = jr.normal(key, shape) / (kernel_size * in_channels**0.5)
        self.grid = (grid[0], grid[1])

    def resolve(self) -> tuple[SpectralConv, Float[Array, ""]]:
        column = kernel_spectrum(self.kernel, self.grid)
        bound = jnp.max(gram_iteration(column)) + spectrum_slack(self.kernel)
        bound = bound * transform_slack(self.grid, column.dtype)
        return SpectralConv(column, self.grid), bound


class CayleyConv(AbstractReparametrized):
    """An orthogonal circular convolution (Trockman & Kolter, ICLR 2021).

    Each frequency of the kernel goes through the Cayley transform. Where the numbers
    of channels differ, the map is isometric (more channels out) or the transpose of an
    isometry. Baking inverts a complex [n, n] matrix for each frequency, n the smaller
    number of channels, by block elimination.
    """

    kernel: Float[Array, "size size larger smaller"]
    grid: tuple[int, int] = eqx.field(static=True)
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        grid: tuple[int, int],
        kernel_size: int = 3,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_channels`, `out_channels`: the numbers of channels.
        - `grid`: height and width of the images it works on; the map depends on them.
        - `kernel_size`: of the kernel that parametrises it: 1, 3 or 5.
        - `key`: of the initial weights.

        **Raises:** `ValueError` for a size that is not one of these.
        """
        height, width = grid
        check_positive(
            in_channels=in_channels,
            out_channels=out_channels,
            height=height,
            width=width,
        )
        if kernel_size not in (1, 3, 5):
            raise ValueError(f"kernel_size must be 1, 3 or 5, not {kernel_size!r}.")
        larger = max(in_channels, out_channels)
        smaller = min(in_channels, out_channels)
        shape = (kernel_size, kernel_size, larger, smaller)
        self.kernel = jr.normal(key, shape) / (kernel_size * larger**0.5)
        self.grid = (height, width)
        self.in_channels = in_channels
        self.out_channels = out_channels

    def resolve(self) -> tuple[SpectralConv, Float[Array, ""]]:
        q = cayley(kernel_spectrum(self.kernel, self.grid))
        bound = isometry_norm(q) * transform_slack(self.grid, q.dtype)
        column = adjoint(q) if self.out_channels < self.in_channels else q
        return SpectralConv(column, self.grid), bound
