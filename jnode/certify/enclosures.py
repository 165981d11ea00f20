r"""Enclosures: sets that contain an array for all inputs, and arithmetic on them.

An enclosure of an array $v$ states that

$v = c + \sum_k M_k s_k + \delta$, with $|s_k| \le \rho_k$ and $|\delta| \le e$
elementwise,

for every input in the ball, and however the computation rounds. The symbols $s_k$ are
the unknowns: the position in the ball, and the slopes of activations. They are shared
by all arrays computed from them. So linear maps are multiplied before absolute values
are taken: two maps $BF$ and $F^\top$, one after the other, turn a symbol into an
interval of width $|F^\top B F|\rho$ and not $|F^\top|\,|BF|\rho$, and $y - y$ is 0. The
matrices $M_k$ do not depend on the image. A nonlinear operation is applied to the
interval $c \pm (\sum_k |M_k|\rho_k + e)$ of each entry, and its result is a new symbol.

Rounding is that of Higham, *Accuracy and Stability of Numerical Algorithms* (2002): a
sum of $n$ products errs by at most $\gamma_n |x|^\top|y|$ in any order, with fused
multiplications or without; numbers below the smallest normal one may become 0. Each
rule allows for the rounding error of the enclosed computation and of its own $c$, $M_k$
and $e$. It assumes that matrix products and convolutions are sums of products (not
Winograd or FFT convolutions, which some GPU libraries use) and that elementary
functions are as accurate as `ULPS` states.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jnode.bounds import gamma, unit_roundoff

ULPS = {
    "erf": 16,
    "exp": 8,
    "log": 8,
    "log1p": 512,
    "log2": 16,
    "logistic": 16,
    "rsqrt": 8,
    "sin": 8,
    "cos": 8,
    "softplus": 16,
    "sqrt": 4,
    "tanh": 16,
}
"""The largest error of XLA's elementary functions, relative, in units of 2u.

With a margin above what `benchmarks/elementary.py` measures on CPU, over all float32
numbers, and a sample of float64 numbers.
"""


class Term(NamedTuple):
    """$M s$ with $|s| \\le \\rho$; without a matrix $s$ itself, in the same order."""

    symbol: object
    radius: Float[Array, " batch symbols"]
    matrix: Float[Array, " symbols *shape"] | None


class Enclosure(NamedTuple):
    """See above. If `moves` is false it does not depend on the image; `batch` is 1.

    An entry whose centre or reach is not finite is unknown: it may be any number, or
    NaN. So is all that is computed from it.
    """

    centre: Float[Array, " batch *shape"]
    error: Float[Array, " batch *shape"] | None = None
    terms: tuple[Term, ...] = ()
    moves: bool = True


Map = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Arithmetic on enclosures.

    - `outward`: whether to allow for rounding. Without it, bounds hold up to rounding
        only, which is enough for training.
    - `limit`: the largest size of a matrix $M_k$. A larger one is replaced by
        intervals; with a limit of 0 there are only intervals.
    """

    outward: bool = True
    limit: int = 2**24

    def slack(self, n: int, like: Array) -> float:
        """Three times the error of a sum of `n` products, relative to their sizes."""
        return 3 * gamma(n + 1, like.dtype) if self.outward else 0.0

    def _up(self, x: Array) -> Array:
        """The error, rounded up by more than a few operations can have lost."""
        if not self.outward:
            return x
        return x * (1 + self.slack(1, x)) + jnp.finfo(x.dtype).tiny

    def _flushed(self, x: Enclosure, n: int = 1) -> Array:
        """What is lost where numbers below the smallest normal one become 0, [batch]:
        of sums of `n` products of entries, their allowances and symbols' matrices."""
        radii = [jnp.sum(term.radius, axis=1) for term in x.terms]
        total = sum(radii, start=jnp.ones(len(x.centre), x.centre.dtype))
        return 8 * n * jnp.finfo(total.dtype).tiny * total

    def reach(self, x: Enclosure) -> Float[Array, " batch *shape"]:
        """A bound on the distance of each entry from its centre."""
        total = jnp.zeros_like(x.centre) if x.error is None else x.error
        for _, radius, matrix in x.terms:
            if matrix is None:
                part = radius.reshape(-1, *x.centre.shape[1:])
            else:
                part = jnp.tensordot(radius, jnp.abs(matrix), 1, precision="highest")
                part = part * (1 + self.slack(len(matrix), part))
                if self.outward:
                    part = part + len(matrix) * jnp.finfo(part.dtype).tiny
            total = total + part
        return self._up(total) if x.terms else total

    def size(self, x: Enclosure) -> Float[Array, " batch *shape"]:
        """A bound on the absolute value of each entry."""
        size = jnp.abs(x.centre)
        if x.error is None and not x.terms:
            return size
        return self._up(size + self.reach(x))

    def ends(self, x: Enclosure) -> tuple[Array, Array]:
        """The interval of each entry; all numbers where it is unknown."""
        c, r = x.centre, self.reach(x)
        if x.error is not None or x.terms:
            r = r + self.slack(1, c) * (jnp.abs(c) + r)
        low, high = c - r, c + r
        known = ~(jnp.isnan(low) | jnp.isnan(high))
        return jnp.where(known, low, -jnp.inf), jnp.where(known, high, jnp.inf)

    def box(
        self, low: Array, high: Array, ulps: int = 0, moves: bool = True
    ) -> Enclosure:
        """The enclosure between two ends, each of which may be off by `ulps`."""
        if self.outward and ulps:
            share = 2 * ulps * unit_roundoff(low.dtype)
            tiny = jnp.finfo(low.dtype).tiny
            low = low - share * jnp.abs(low) - tiny
            high = high + share * jnp.abs(high) + tiny
        centre = low / 2 + high / 2
        error = jnp.maximum(high - centre, centre - low)
        if self.outward:
            error = error * (1 + self.slack(1, error))
        return self.opened(Enclosure(centre, error, (), moves))

    def opened(self, x: Enclosure) -> Enclosure:
        """Turns the error into a new symbol, so that later maps compose with it."""
        if not x.moves or x.error is None or x.centre[0].size > self.limit:
            return x
        new = Term(object(), x.error.reshape(len(x.error), -1), None)
        return x._replace(error=None, terms=(*x.terms, new))

    def collapsed(self, x: Enclosure) -> Enclosure:
        """The enclosing intervals, without symbols."""
        return x._replace(error=self.reach(x), terms=()) if x.terms else x

    def fitting(self, x: Enclosure, size: int) -> Enclosure:
        """Without symbols, if their matrices for a result of this size exceed the
        limit."""
        symbols = sum(term.radius.shape[1] for term in x.terms)
        return self.collapsed(x) if symbols * size > self.limit else x

    def moved(self, f: Map, x: Enclosure, *, ordered: bool = False) -> Enclosure:
        """`f` that moves, repeats or drops entries; `ordered` if none moves."""
        out = jax.eval_shape(f, x.centre[0])
        x, each = self.fitting(x, out.size), jax.vmap(f)
        terms = tuple(
            t if ordered and t.matrix is None else t._replace(matrix=each(_dense(t, x)))
            for t in x.terms
        )
        error = None if x.error is None else each(x.error)
        return x._replace(centre=each(x.centre), error=error, terms=terms)

    def negative(self, x: Enclosure) -> Enclosure:
        terms = tuple(t._replace(matrix=-_dense(t, x)) for t in x.terms)
        return x._replace(centre=-x.centre, terms=terms)

    def joined(self, f: Map, xs: Sequence[Enclosure]) -> Enclosure:
        """`f` that puts together entries of several arrays."""
        size = jax.eval_shape(f, *(x.centre[0] for x in xs)).size
        xs = [self.fitting(x, size) for x in xs]
        batch = max(len(x.centre) for x in xs)
        xs = [x._replace(centre=_spread(x.centre, batch)) for x in xs]
        each = jax.vmap(f)
        error = None
        if any(x.error is not None for x in xs):
            error = each(*(self._error(x, batch) for x in xs))
        terms = []
        for term in _unique(xs):
            n = term.radius.shape[1]
            parts = [
                jnp.zeros((n, *x.centre.shape[1:]), x.centre.dtype)
                if _matrix(x, term) is None
                else _matrix(x, term)
                for x in xs
            ]
            terms.append(term._replace(matrix=each(*parts)))
        moves = any(x.moves for x in xs)
        return Enclosure(each(*(x.centre for x in xs)), error, tuple(terms), moves)

    def add(self, f: Map, x: Enclosure, y: Enclosure) -> Enclosure:
        """`f` that adds two arrays of shapes that fit."""
        shape = jax.eval_shape(f, x.centre[0], y.centre[0]).shape
        size = 1
        for n in shape:
            size *= n
        x, y = self.fitting(x, size), self.fitting(y, size)
        centre = _each(f, x.centre, y.centre)
        error = None
        if self.outward:
            sizes = _each(jnp.add, self.size(x), self.size(y))
            lost = self._flushed(x) + self._flushed(y)
            error = self.slack(1, sizes) * sizes + _behind(lost, sizes)
        for e in (x.error, y.error):
            if e is not None:
                e = _grown(e, shape)
                error = e if error is None else error + e
        error = error if error is None else self._up(error)
        terms = []
        for term in _unique([x, y]):
            same = all(
                z.centre.shape[1:] == shape and t.matrix is None
                for z in (x, y)
                for t in z.terms
                if t.symbol is term.symbol
            )
            found = [m for m in (_matrix(x, term), _matrix(y, term)) if m is not None]
            if same and len(found) == 1:
                terms.append(term._replace(matrix=None))
                continue
            found = [_grown(m, shape) for m in found]
            terms.append(term._replace(matrix=reduce(jnp.add, found)))
        return Enclosure(centre, error, tuple(terms), x.moves or y.moves)

    def bilinear(self, f: Map, x: Enclosure, y: Enclosure, length: int) -> Enclosure:
        """`f` whose entries are sums of `length` products of one of `x`, one of `y`."""
        if y.terms and not x.terms:
            return self.bilinear(lambda a, b: f(b, a), y, x, length)
        y = self.collapsed(y)
        size = jax.eval_shape(f, x.centre[0], y.centre[0]).size
        x = self.collapsed(x) if y.moves else self.fitting(x, size)
        each = jax.vmap(f, (0, None))
        terms = tuple(
            t._replace(matrix=each(_dense(t, x), y.centre[0])) for t in x.terms
        )
        g, error, inner = self.slack(length, x.centre), None, x.error
        if self.outward:
            inner = 0.0 if inner is None else inner
            inner = g * self.size(x) + (1 + g) * inner + jnp.finfo(x.centre.dtype).tiny
        if inner is not None:
            error = _each(f, inner, jnp.abs(y.centre))
        if y.error is not None:
            more = (1 + g) * _each(f, self.size(x), y.error)
            error = more if error is None else error + more
        if error is not None and self.outward:
            lost = self._flushed(x, length) + self._flushed(y, length)
            error = self._up(error + _behind(lost, error))
        centre = _each(f, x.centre, y.centre)
        return Enclosure(centre, error, terms, x.moves or y.moves)

    def total(self, f: Map, x: Enclosure, length: int) -> Enclosure:
        """`f` whose entries are sums of `length` entries."""
        one = jnp.ones((1, *x.centre.shape[1:]), x.centre.dtype)
        ones = Enclosure(one, moves=False)
        return self.bilinear(lambda a, b: f(a * b), x, ones, length)

    def monotone(self, f: Map, x: Enclosure, ulps: int = 0) -> Enclosure:
        """An increasing or decreasing function of each entry; unknown where that is,
        although the function be bounded: the entry may be NaN."""
        low, high = self.ends(x)
        known = jnp.isfinite(low) & jnp.isfinite(high)
        a, b = (jnp.where(known, jax.vmap(f)(end), jnp.nan) for end in (low, high))
        return self.box(jnp.minimum(a, b), jnp.maximum(a, b), ulps, x.moves)

    def ordering(self, f: Map, x: Enclosure) -> Enclosure:
        """An increasing function of several entries that returns some of them."""
        low, high = (jax.vmap(f)(end) for end in self.ends(x))
        return self.box(low, high, 0, x.moves)

    def both(self, f: Map, x: Enclosure, y: Enclosure) -> Enclosure:
        """The maximum or minimum of two, elementwise."""
        low, high = (
            _each(f, *pair) for pair in zip(self.ends(x), self.ends(y), strict=True)
        )
        return self.box(low, high, 0, x.moves or y.moves)

    def hull(self, x: Enclosure, y: Enclosure) -> Enclosure:
        """An enclosure of the union of two."""
        (a, b), (c, d) = self.ends(x), self.ends(y)
        low, high = _each(jnp.minimum, a, c), _each(jnp.maximum, b, d)
        return self.box(low, high, 0, x.moves or y.moves)

    def absolute(self, x: Enclosure) -> Enclosure:
        low, high = self.ends(x)
        least = jnp.maximum(jnp.maximum(low, -high), 0)
        return self.box(least, jnp.maximum(-low, high), 0, x.moves)

    def wave(self, f: Map, x: Enclosure, ulps: int) -> Enclosure:
        """A function whose slope and values are at most 1 in size: sine and cosine."""
        centre, reach = f(x.centre), self.reach(x)
        errs = self.outward * 4 * ulps * unit_roundoff(centre.dtype)
        # Of infinity it is NaN.
        error = self._up(jnp.where(jnp.isfinite(reach), jnp.minimum(reach, 2), reach))
        error = error + errs
        return self.opened(Enclosure(centre, error, (), x.moves))

    def reciprocal(self, x: Enclosure) -> Enclosure:
        """1/x; unbounded where x may be 0."""
        low, high = self.ends(x)
        a, b = 1 / high, 1 / low
        zero = ~(low * high > 0)
        bound = jnp.where(zero, jnp.inf, 0)
        return self.box(a - bound, b + bound, 1, x.moves)

    def _error(self, x: Enclosure, batch: int) -> Array:
        error = jnp.zeros_like(x.centre) if x.error is None else x.error
        return _spread(error, batch)


def _dense(term: Term, x: Enclosure) -> Array:
    """The matrix of a term of `x`."""
    if term.matrix is not None:
        return term.matrix
    n = term.radius.shape[1]
    return jnp.eye(n, dtype=x.centre.dtype).reshape(n, *x.centre.shape[1:])


def _matrix(x: Enclosure, like: Term) -> Array | None:
    """The matrix by which `x` depends on a symbol, or `None`."""
    for term in x.terms:
        if term.symbol is like.symbol:
            return _dense(term, x)
    return None


def _unique(xs: Sequence[Enclosure]) -> list[Term]:
    return list({id(t.symbol): t for x in xs for t in x.terms}.values())


def _each(f: Map, x: Array, y: Array) -> Array:
    """`f` of the two arrays of each image; a batch axis of 1 is broadcast."""
    if len(x) == len(y):
        return jax.vmap(f)(x, y)
    if len(x) == 1:
        return jax.vmap(lambda b: f(x[0], b))(y)
    return jax.vmap(lambda a: f(a, y[0]))(x)


def _behind(x: Array, like: Array) -> Array:
    """A number for each image, to be added to arrays like `like`."""
    return x.reshape(-1, *(1,) * (like.ndim - 1))


def spread(x: Enclosure, batch: int) -> Enclosure:
    """The same for so many images, if it does not depend on them."""
    terms = (t._replace(radius=_spread(t.radius, batch)) for t in x.terms)
    error = None if x.error is None else _spread(x.error, batch)
    return Enclosure(_spread(x.centre, batch), error, tuple(terms), x.moves)


def _spread(x: Array, batch: int) -> Array:
    return x if len(x) == batch else jnp.broadcast_to(x, (batch, *x.shape[1:]))


def _grown(x: Array, shape: tuple[int, ...]) -> Array:
    """Broadcast to the shape of a sum."""
    if x.ndim == 1:
        x = x.reshape(-1, *(1,) * len(shape))
    return jnp.broadcast_to(x, (len(x), *shape))
