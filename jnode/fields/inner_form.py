r"""A field seen from its inner units.

The inner units $u = Wy$ of a field $f(t, y) = L\,V\sigma(Wy + b + t c) + d + t e$
follow an equation of their own, $\dot u = L\,WV\sigma(u + b + t c) + W(d + t e)$.
Runge-Kutta steps commute with linear maps, so the same steps taken there give the same
$y$, up to rounding, with the one map $WV$ in place of two in each evaluation: half the
work.
"""

import equinox as eqx
from jaxtyping import Array, Float

from jnode.activations import AbstractActivation
from jnode.linear import AbstractLinear
from jnode.linear.compose import compose

Clocks = tuple[Float[Array, " hidden"], Float[Array, " channels"]]


class InnerForm(eqx.Module):
    r"""The parts of such a field, baked.

    - `enter`, `leave`, `loop`: $W$, $V$ and $WV$.
    - `activation`, `scale`: $\sigma$ and $L$.
    - `bias`, `drift`: $b$ and $d$.
    - `clocks`: $c$ and $e$, where the field moves with time.
    """

    enter: AbstractLinear
    leave: AbstractLinear
    loop: AbstractLinear
    activation: AbstractActivation
    scale: Float[Array, ""]
    bias: Float[Array, " hidden"]
    drift: Float[Array, " channels"] | None
    clocks: Clocks | None

    def pays(self, evaluations: int, channels: int) -> bool:
        """Whether so many evaluations cost less here, in products of channels."""
        hidden = len(self.bias)
        outer = 2 * channels * hidden
        return outer + (evaluations - 1) * hidden**2 < evaluations * outer


def inner_form(
    enter: AbstractLinear,
    leave: AbstractLinear | None,
    activation: AbstractActivation,
    scale: Float[Array, ""],
    bias: Float[Array, " hidden"],
    drift: Float[Array, " channels"] | None = None,
    clocks: Clocks | None = None,
) -> InnerForm | None:
    """The inner form of baked maps, or `None` where they make no single map."""
    loop = None if leave is None else compose(enter, leave)
    if leave is None or loop is None:
        return None
    return InnerForm(enter, leave, loop, activation, scale, bias, drift, clocks)
