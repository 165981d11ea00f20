# %% [markdown]
# # Orthogonal and norm-bounded convolutions in any Equinox model
#
# Spectral normalisation that reshapes a convolution's kernel to a matrix bounds the
# norm of that matrix. The norm of the convolution is often larger, so a network made
# in this way need not be 1-Lipschitz. `jnode.linear` bounds the convolution itself, on
# the grid on which it acts. `BoundedConv2d` and `BoundedLinear` replace
# `eqx.nn.Conv2d` and `eqx.nn.Linear`.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jnode
from jnode.constraints import BoundedConv2d, BoundedLinear, vanilla_export
from jnode.data import to_float
from jnode.linear import Conv, spectral_norm

GRID = (14, 14)

# %% [markdown]
# ## Two norms of one kernel
#
# A kernel of ones, 3 by 3, from one channel to one, divided by the norm of the
# reshaped kernel. A bright image comes out three times as bright:

# %%
conv = eqx.nn.Conv2d(1, 1, 3, padding=1, use_bias=False, key=jax.random.key(0))
ones = jnp.ones_like(conv.weight)
reshaped = jnp.linalg.norm(ones.reshape(1, -1), 2)
conv = eqx.tree_at(lambda c: c.weight, conv, ones / reshaped)

operator = Conv(conv.weight.transpose(2, 3, 1, 0), GRID)
image = jnp.ones((1, *GRID))
seen = jnp.linalg.norm(conv(image)) / jnp.linalg.norm(image)
print(
    f"norm of the reshaped kernel {jnp.linalg.norm(conv.weight.reshape(1, -1), 2):.3f}"
)
print(f"seen on one image           {seen:.3f}")
print(f"certified upper bound       {operator.norm():.3f}")
assert 1 < seen <= operator.norm()

# %% [markdown]
# Power iteration on the operator itself approaches its norm from below, so it
# certifies nothing. `spectral_norm` and `norm()` are upper bounds, rounding included.
#
# ## A 1-Lipschitz network of Equinox parts
#
# Two orthogonal convolutions and an orthogonal head. `constraint` chooses between
# `cayley` (orthogonal: preserves the norm of gradients), `rescaled`, `aol`, `sll` and
# `newton_schulz`.


# %%
class Net(eqx.Module):
    layers: list

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.layers = [
            BoundedConv2d(1, 8, grid=GRID, key=keys[0]),
            jnp.abs,
            BoundedConv2d(8, 8, grid=GRID, constraint="rescaled", key=keys[1]),
            jnp.abs,
            jnp.ravel,
            BoundedLinear(8 * GRID[0] * GRID[1], 10, key=keys[2]),
        ]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def small(images):  # to 14 x 14, channels first; sum / 2 is 1-Lipschitz in the pixels
    blocks = to_float(images).reshape(-1, 14, 2, 14, 2)
    return jnp.asarray(blocks.sum(axis=(2, 4))[:, None] / 2)


train, test = (jnode.data.load("mnist5k", split=split) for split in ("train", "test"))
images, labels = small(train.images), jnp.asarray(train.labels)

# %% [markdown]
# $|x|$ is 1-Lipschitz, and so are all the other parts; hence the network is. It is
# trained like any Equinox model, here with a hinge loss for a margin of 0.7:


# %%
def loss(model, x, y):
    logits = jax.vmap(model)(x)
    own = jnp.take_along_axis(logits, y[:, None], axis=1)
    others = jnp.where(jax.nn.one_hot(y, 10) > 0, -jnp.inf, logits)
    return jnp.mean(jnp.maximum(0, 0.7 - (own[:, 0] - others.max(axis=1))))


@eqx.filter_jit
def step(model, state, x, y):
    value, gradient = eqx.filter_value_and_grad(loss)(model, x, y)
    updates, state = optimiser.update(gradient, state)
    return eqx.apply_updates(model, updates), state, value


model = Net(jax.random.key(0))
optimiser = optax.adam(5e-3)
state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))
rng = np.random.default_rng(0)
for number in range(120):
    batch = rng.choice(len(images), 128, replace=False)
    model, state, value = step(model, state, images[batch], labels[batch])
    if number % 40 == 39:
        print(f"step {number + 1}: loss {value:.3f}")

# %% [markdown]
# ## Plain layers
#
# `vanilla_export` gives an equal model of `eqx.nn` layers only. It needs no jnode, its
# constraints are computed already, and it can be saved and shared like any other.

# %%
plain = vanilla_export(model)
for layer in plain.layers:
    if isinstance(layer, eqx.Module):
        print(type(layer))
x = small(test.images)
logits = jax.jit(jax.vmap(plain))(x)
difference = jnp.abs(logits - jax.jit(jax.vmap(model))(x)).max()
print(f"largest difference of a logit {difference:.1e}")
print("kernels", plain.layers[0].kernel_size, plain.layers[2].kernel_size)
assert difference < 1e-4

# %% [markdown]
# An orthogonal convolution reaches over the whole grid, so its plain kernel is as
# large as the grid; that of the rescaled one stays 3 by 3. Both are ordinary
# convolutions of that size.
#
# ## Certified radii by hand
#
# Two logits of a 1-Lipschitz network differ by a function whose constant is at most
# $\sqrt 2$. With a margin $m$, no perturbation shorter than $m / \sqrt 2$ changes the
# prediction. (`jnode.certify.radius` does this for jnode's classifiers, with an
# allowance for rounding, which is missing here.)

# %%
constant = float(
    np.prod([float(m.map.norm()) for m in model.layers if hasattr(m, "map")])
)
ranked = jnp.sort(logits, axis=1)
right = logits.argmax(axis=1) == jnp.asarray(test.labels)
radii = jnp.where(right, (ranked[:, -1] - ranked[:, -2]) / (2**0.5 * constant), -1)
print(f"certified Lipschitz constant {constant:.5f}")
print(f"accuracy {right.mean():.3f}")
for r in (0.1, 0.25, 0.5):
    print(f"certified at {r}: {(radii >= r).mean():.3f}")

# %% [markdown]
# If you edit exported weights, measure their norm again. For the head:

# %%
head = plain.layers[-1]
print(f"{spectral_norm(head.weight):.6f}")

# %% [markdown]
# Constraints of your own work here too:
# [how](../interop.md#a-constraint-of-your-own). API:
# [`BoundedConv2d`](../api/constraints.md#jnode.constraints.BoundedConv2d),
# [`vanilla_export`](../api/constraints.md#jnode.constraints.vanilla_export).
