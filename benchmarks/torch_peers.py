"""The peers in PyTorch: torchdiffeq and torchode around the same fields.

Each in its best honest form: channels-first tensors, complex FFTs as in the public
code of orthogonal convolutions (Trockman & Kolter, ICLR 2021), and that transform
either in every evaluation of the field, as that code does, or hoisted out of the
solve. One more peer, `matmul`, takes over jnode's own form, the Fourier transform as a
real matrix product, to tell what the framework gives and what the form gives.
"""

import numpy as np
import torch
import torchdiffeq
from torch import nn

from jnode.linear import spectral_conv

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# All contestants multiply in float32 proper; PyTorch's convolutions would use TF32.
torch.backends.cudnn.allow_tf32 = False


class CayleyField(nn.Module):
    """L W2 relu(W1 y + b1) + b2 with orthogonal circular convolutions."""

    def __init__(self, channels, side, *, form, lipschitz=1.0, activation=torch.relu):
        super().__init__()
        self.side, self.form, self.lipschitz = side, form, lipschitz
        self.activation = activation
        shape = (2, channels, channels, 3, 3)
        self.kernels = nn.Parameter(torch.randn(shape) / (3 * channels**0.5))
        self.biases = nn.Parameter(torch.zeros(2, channels))
        self.hoisted = None

    def matrices(self):
        """Of both maps, one unitary matrix a frequency of the half plane."""
        n = self.side
        w = torch.fft.rfft2(self.kernels, (n, n)).permute(0, 3, 4, 1, 2)
        a = w - w.conj().mT
        eye = torch.eye(w.shape[-1], dtype=a.dtype, device=a.device)
        return torch.linalg.solve(eye + a, eye - a)

    def hoist(self):
        self.hoisted = None
        if self.form == "per call":
            return
        q = self.matrices()
        self.hoisted = q if self.form == "hoisted" else self._real(q)

    def _real(self, q):
        # The frequencies that jnode keeps, as real blocks.
        n = self.side
        kept = spectral_conv.half_plane(n, n)
        rows = [
            q[:, k, m] if m <= n // 2 else q[:, -k % n, -m % n].conj()
            for k, m, _ in kept
        ]
        q = torch.stack(rows, 1)
        top = torch.cat([q.real, -q.imag], -1)
        return torch.cat([top, torch.cat([q.imag, q.real], -1)], -2)

    def apply_map(self, q, y):
        n = self.side
        if self.form == "matmul":
            f = torch.as_tensor(spectral_conv.transform(n, n)).to(y)
            f = f.reshape(-1, n * n)
            b, c = y.shape[:2]
            s = (y.reshape(b, c, n * n) @ f.T).reshape(b, c, 2, -1)
            s = s.permute(3, 0, 2, 1).reshape(-1, b, 2 * c)
            s = (s @ q.mT).reshape(-1, b, 2, c).permute(1, 3, 2, 0)
            return (s.reshape(b, c, -1) @ f).reshape(b, c, n, n)
        s = torch.fft.rfft2(y).permute(2, 3, 1, 0)
        s = (q @ s).permute(3, 2, 0, 1)
        return torch.fft.irfft2(s, (n, n))

    def forward(self, t, y):
        q = self.matrices() if self.hoisted is None else self.hoisted
        b = self.biases[:, None, :, None, None]
        hidden = self.activation(self.apply_map(q[0], y) + b[0])
        return self.lipschitz * self.apply_map(q[1], hidden) + b[1]


class ConvField(nn.Module):
    """W2 relu(W1 y + b1) + b2 with zero-padded 3x3 convolutions: an ODENet."""

    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def hoist(self):
        pass

    def forward(self, t, y):
        return self.second(torch.relu(self.first(y)))


class Classifier(nn.Module):
    """The field between two times, then a linear head."""

    def __init__(self, field, channels, side, solve):
        super().__init__()
        self.field, self.solve = field, solve
        self.head = nn.Linear(channels * side * side, 10)

    def forward(self, y):
        self.field.hoist()
        return self.head(self.solve(self.field, y).flatten(1))


def torchdiffeq_solve(method, steps=None, tolerances=None):
    """As torchdiffeq's documentation shows it: `odeint`, differentiated directly."""
    span = torch.tensor([0.0, 1.0], device=DEVICE)
    if steps is not None:
        options = {"method": method, "options": {"step_size": 1.0 / steps}}
    else:
        options = {"method": method, "rtol": tolerances[0], "atol": tolerances[1]}
    return lambda field, y: torchdiffeq.odeint(field, y, span, **options)[-1]


def torchode_solve(method, tolerances):
    """Step-size control per sample; torchode's states are flat."""
    import torchode

    def solve(field, y):
        def flat(t, x):
            return field(t, x.reshape(y.shape)).flatten(1)

        term = torchode.ODETerm(flat)
        stepper = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}[method]
        controller = torchode.IntegralController(
            atol=tolerances[1], rtol=tolerances[0], term=term
        )
        adjoint = torchode.AutoDiffAdjoint(stepper(term=term), controller)
        times = torch.tensor([0.0, 1.0], device=DEVICE).repeat(len(y), 1)
        problem = torchode.InitialValueProblem(y0=y.flatten(1), t_eval=times)
        solution = adjoint.solve(problem)
        solve.steps = solution.stats["n_steps"]
        return solution.ys[:, -1].reshape(y.shape)

    return solve


def numpy_batch(batch, side, channels, seed=0):
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((batch, side, side, channels), np.float32) * 0.3
    return states, rng.integers(0, 10, batch)
