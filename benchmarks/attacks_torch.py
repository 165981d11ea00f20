"""The classifiers of benchmarks/attacks.py in PyTorch, with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class CircularConv(nn.Module):
    """A circular convolution given by a kernel [out, in, size, size]."""

    def __init__(self, kernel: np.ndarray):
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(kernel), requires_grad=False)

    def forward(self, x):
        r = self.weight.shape[-1] // 2
        return F.conv2d(F.pad(x, (r, r, r, r), mode="circular"), self.weight)


class SpectralConv(nn.Module):
    """A circular convolution given by a matrix [frequencies, out, in] a frequency.

    As in public implementations of the Cayley convolution, the matrices computed once.
    """

    def __init__(self, spectrum: np.ndarray, grid: tuple[int, int]):
        super().__init__()
        self.spectrum = nn.Parameter(torch.from_numpy(spectrum), requires_grad=False)
        self.adjoint = nn.Parameter(
            self.spectrum.conj().transpose(-1, -2).contiguous(), requires_grad=False
        )
        self.grid = grid

    def _apply_matrices(self, matrices, x):
        n, c, h, w = x.shape
        z = torch.fft.rfft2(x).reshape(n, c, -1).permute(2, 1, 0)
        z = (matrices @ z).permute(2, 1, 0).reshape(n, -1, h, w // 2 + 1)
        return torch.fft.irfft2(z, s=self.grid)

    def forward(self, x):
        return self._apply_matrices(self.spectrum, x)

    def transpose(self, x):
        return self._apply_matrices(self.adjoint, x)


class Free(nn.Module):
    r"""$f(y) = W_2\,\mathrm{relu}(W_1 y + b_1) + b_2$."""

    def __init__(self, first, second, first_bias, second_bias):
        super().__init__()
        self.first, self.second = first, second
        self.b1, self.b2 = (_bias(b) for b in (first_bias, second_bias))

    def forward(self, y):
        return self.second(F.relu(self.first(y) + self.b1)) + self.b2


class GradientFlow(nn.Module):
    r"""$f(y) = -L W^\top\mathrm{relu}(W y + b)$."""

    def __init__(self, map_: SpectralConv, bias, scale: float):
        super().__init__()
        self.map, self.bias, self.scale = map_, _bias(bias), scale

    def forward(self, y):
        return -self.scale * self.map.transpose(F.relu(self.map(y) + self.bias))


class Classifier(nn.Module):
    """Space-to-depth, steps of Euler or the classical Runge-Kutta method, head."""

    def __init__(self, field, head, bias, *, patch, features, rk4: bool, steps: int):
        super().__init__()
        self.field = field
        self.head = nn.Parameter(torch.from_numpy(head.T.copy()), requires_grad=False)
        self.bias = nn.Parameter(torch.from_numpy(bias), requires_grad=False)
        self.patch, self.features, self.rk4, self.steps = patch, features, rk4, steps

    def forward(self, x):
        n, c, h, w = x.shape
        p = self.patch
        y = (x - 0.5).reshape(n, c, h // p, p, w // p, p)
        y = y.permute(0, 3, 5, 1, 2, 4).reshape(n, p * p * c, h // p, w // p)
        step, f = 1 / self.steps, self.field
        for _ in range(self.steps):
            k1 = f(y)
            if self.rk4:
                k2 = f(y + step / 2 * k1)
                k3 = f(y + step / 2 * k2)
                k4 = f(y + step * k3)
                y = y + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            else:
                y = y + step * k1
        return y.permute(0, 2, 3, 1).reshape(n, -1) @ self.head + self.bias


def _bias(bias):
    return nn.Parameter(
        torch.from_numpy(bias).reshape(1, -1, 1, 1), requires_grad=False
    )


def in_torch(model) -> Classifier:
    """The PyTorch module of a `jnode` classifier: a circular free field, or a gradient
    flow of Cayley convolutions, with the isometric encoder."""
    field = model.blocks[0].field
    shape = model.image_shape
    lift = model.layers[0]
    patch = lift.patch
    grid = (shape[0] // patch, shape[1] // patch)
    channels = lift.features
    array = lambda x: np.array(x, np.float32)
    if hasattr(field, "first"):
        hidden = field.first_bias.shape[0]
        torch_field = Free(
            CircularConv(_kernel(_responses(field.first, grid, channels))),
            CircularConv(_kernel(_responses(field.second, grid, hidden))),
            array(field.first_bias),
            array(field.second_bias),
        )
    else:
        responses = _responses(field.weights[0], grid, channels)
        map_ = SpectralConv(_spectrum(responses), grid)
        torch_field = GradientFlow(
            map_, array(field.biases[0]), float(field.scale(np.float32))
        )
    return Classifier(
        torch_field,
        array(model.head.rows()),
        array(model.head.bias),
        patch=patch,
        features=channels,
        rk4=model.solver.name == "rk4",
        steps=model.solver.steps,
    ).eval()


def _responses(map_, grid, channels) -> np.ndarray:
    """[in, height, width, out]: what an impulse in each channel becomes."""
    impulses = np.zeros((channels, *grid, channels), np.float32)
    impulses[np.arange(channels), 0, 0, np.arange(channels)] = 1
    return np.asarray(jax.vmap(map_)(jnp.asarray(impulses)), np.float64)


def _kernel(responses, size: int = 3) -> np.ndarray:
    """The kernel [out, in, size, size] of a circular convolution: mirrored, cut out."""
    taps = size // 2 - np.arange(size)
    kernel = responses[:, taps][:, :, taps]
    return kernel.transpose(3, 0, 1, 2).astype(np.float32)


def _spectrum(responses) -> np.ndarray:
    """Of each frequency of `rfft2` the matrix [out, in]."""
    spectrum = np.fft.rfft2(responses, axes=(1, 2))
    spectrum = spectrum.reshape(len(responses), -1, responses.shape[-1])
    return spectrum.transpose(1, 2, 0).astype(np.complex64)
