"""TisODE (Yan et al., ICLR 2020) on MNIST: a residual net, an ODE net and TisODE.

The same stem and head around one residual block: x + f(x), or f solved by ten Euler
steps (ODE net) or twenty (TisODE) over unit time. The ODE net's convolutions see the
time as one more channel. Group normalisation has no Lipschitz bound, so nothing is
certified.
"""

from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from checkpoints import arrays, kernel
from jaxtyping import Array, Float
from nets import MeanPool, convolved, head

from jnode import Solver
from jnode.fields.base import AbstractUncertifiedField
from jnode.models import ODEBlock, ODEClassifier
from jnode.models.layers import AbstractLayer

STEPS = {"CNN": 1, "ODE": 10, "tisode": 20}
"""Euler steps over unit time, by the name in the checkpoint's folder."""
GROUPS = 32


class NormedConv(eqx.Module):
    """A convolution, group normalisation and relu; the time is a channel if `timed`."""

    kernel: Float[Array, "size size in out"]
    bias: Float[Array, " out"]
    scale: Float[Array, " out"]
    shift: Float[Array, " out"]
    stride: int = eqx.field(static=True, default=1)
    padding: int = eqx.field(static=True, default=1)

    def __call__(self, t: Any, x: Float[Array, "rows columns channels"]):
        if self.kernel.shape[2] == x.shape[-1] + 1:
            time = jnp.full((*x.shape[:2], 1), t, x.dtype)
            x = jnp.concatenate([time, x], axis=-1)
        y = convolved(x, self.kernel, self.stride, self.padding) + self.bias
        groups = y.reshape(-1, GROUPS, y.shape[-1] // GROUPS)
        mean = jnp.mean(groups, axis=(0, 2), keepdims=True)
        variance = jnp.var(groups, axis=(0, 2), keepdims=True)
        normed = ((groups - mean) / jnp.sqrt(variance + 1e-5)).reshape(y.shape)
        return jax.nn.relu(normed * self.scale + self.shift)


class Stem(AbstractLayer):
    """Two normalised convolutions: from 28 x 28 pixels to 64 channels on 13 x 13."""

    affine: ClassVar[bool] = False
    first: NormedConv
    second: NormedConv

    def __call__(self, x):
        return self.second(0.0, self.first(0.0, x))

    def lipschitz(self):
        return jnp.asarray(jnp.inf)


class Field(AbstractUncertifiedField):
    """Two normalised convolutions one after the other."""

    first: NormedConv
    second: NormedConv

    def __call__(self, t, y, args=None):
        return self.second(t, self.first(t, y))


def build(folder: Path, name: str) -> ODEClassifier:
    """The net of `checkpoints/MNIST_{name}_gaus_1`, as its last epoch left it.

    The file of the best epoch holds pickled Python objects instead of arrays, which
    torch's safe loader refuses; at the end of training the two are a few epochs of a
    tiny learning rate apart.
    """
    w = arrays(folder / f"checkpoints/MNIST_{name}_gaus_1/checkpoint.pth", "model")
    one_list = name != "tisode"
    stem = "net." if one_list else "downsampling_layers."
    block = {
        "CNN": "net.6.",
        "ODE": "net.6.odefunc.",
        "tisode": "feature_layers.",
    }[name]
    last = "net.9." if one_list else "fc_layers.2."

    def conv(at: str, norm: str, **how: int) -> NormedConv:
        at = f"{at}._layer" if f"{at}._layer.weight" in w else at
        weight = kernel(w[f"{at}.weight"])
        bias = w.get(f"{at}.bias", jnp.zeros(weight.shape[-1]))
        parts = (weight, bias, w[f"{norm}.weight"], w[f"{norm}.bias"])
        return NormedConv(*map(jnp.asarray, parts), **how)

    field = Field(
        conv(f"{block}conv1", f"{block}norm1"), conv(f"{block}conv2", f"{block}norm2")
    )
    layers = [
        Stem(
            conv(f"{stem}0", f"{stem}1", padding=0),
            conv(f"{stem}3", f"{stem}4", stride=2),
        ),
        ODEBlock(field, Solver("euler", steps=STEPS[name])),
        MeanPool(),
    ]
    return ODEClassifier(
        layers, head(w[f"{last}weight"], w[f"{last}bias"]), (28, 28, 1)
    )
