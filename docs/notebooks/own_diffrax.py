# %% [markdown]
# # A contraction rate, certified, in your own Diffrax code
#
# A small circuit: capacitors in a ring, joined by resistors, each with a leak to
# ground and a diode-like load. Its voltages obey
#
# $$\frac{dv}{dt} = -(K + g)\,v - a \tanh(v) + u(t),$$
#
# with $K$ the Laplacian of the ring, leaks $g$, loads $a$ and a known input $u$. Two
# circuits with the same input forget how they started: their voltages approach each
# other at a rate of at least $g$. This holds for the *exact* solution. Does it hold
# for what a solver computes, and with which steps?

# %%
import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import jnode

NODES, LEAK, LOAD, JOINT, END = 12, 0.5, 1.0, 4.0, 2.0


class Circuit(eqx.Module):
    joint: jax.Array
    leak: jax.Array
    load: jax.Array

    def __call__(self, t, v, args):
        laplacian = self.joint * (2 * v - jnp.roll(v, 1) - jnp.roll(v, -1))
        inputs = jnp.sin(2 * jnp.pi * t + jnp.arange(NODES))
        return -laplacian - self.leak * v - self.load * jnp.tanh(v) + inputs


circuit = Circuit(jnp.array(JOINT), jnp.array(LEAK), jnp.array(LOAD))

# %% [markdown]
# ## What is known of the field
#
# The Jacobian is $-(K + g + a\,\mathrm{diag}(1 - \tanh^2 v))$: symmetric, with
# eigenvalues between $-(4k + g + a)$ and $-g$, where $k$ is the conductance of a
# resistor (`joint`). `Certified` stores this formula with the function and evaluates
# it whenever bounds are needed, so it follows the parameters if they are fitted.


# %%
def bounds(circuit):
    largest = 4 * circuit.joint + circuit.leak + circuit.load
    return jnode.Bounds(
        lipschitz=largest, log_norm=(-largest, -circuit.leak), cocoercivity=1 / largest
    )


field = jnode.Certified(circuit, bounds=bounds)
print(f"L = {field.lipschitz():.1f}, logarithmic norm {field.log_norm():.2f}")

# %% [markdown]
# ## The exact flow
#
# From the logarithmic norm alone: two solutions are at most $e^{-gt}$ times as far
# apart as at the start. Gronwall's bound $e^{Lt}$, from the Lipschitz constant, is
# useless here.

# %%
ideal = float(jnode.certify.log_norm_envelope(field, jnp.array([0.0, END]))[-1])
loose = float(jnode.certify.gronwall(field, jnp.array([0.0, END]))[-1])
print(f"after t = {END}: {ideal:.3f} by the logarithmic norm, {loose:.2g} by Gronwall")

# %% [markdown]
# ## The numerical solves, compared
#
# `amplification` bounds the map that the steps compute. In brackets is what is
# observed: the largest ratio of distances over pairs of states, solved by Diffrax
# itself with the same steps.

# %%
METHODS = {
    "Euler": diffrax.Euler(),
    "Heun": diffrax.Heun(),
    "Ralston": diffrax.Ralston(),
}
STEPS = (16, 20, 24, 32, 64, 128)
key_v, key_d = jax.random.split(jax.random.key(0))
starts = jax.random.normal(key_v, (64, NODES))
apart = jax.random.normal(key_d, (64, NODES))
# Half of them where the load is saturated, apart by the same voltage at every node:
# what the circuit forgets most slowly.
starts = starts.at[32:].add(8.0)
others = starts + 1e-2 * apart.at[32:].set(1.0)


def seen(solver, steps):
    def solve(v):
        sol = diffrax.diffeqsolve(
            diffrax.ODETerm(field), solver, 0.0, END, END / steps, v
        )
        return sol.ys[0]

    both = jax.jit(jax.vmap(jax.vmap(solve)))
    ends, ends_of_others = both(jnp.stack([starts, others]))
    after = jnp.linalg.norm(ends - ends_of_others, axis=1)
    return float(jnp.max(after / jnp.linalg.norm(starts - others, axis=1)))


table = {
    name: [
        (float(jnode.amplification(field, s, t1=END, steps=n)), seen(s, n))
        for n in STEPS
    ]
    for name, s in METHODS.items()
}
print("steps" + "".join(f"{name:>18}" for name in table))
for n, *cells in zip(STEPS, *table.values(), strict=True):
    print(
        f"{n:>5}" + "".join(f"{proven:>10.3g} ({found:.3f})" for proven, found in cells)
    )
assert all(found <= proven for row in table.values() for proven, found in row)

# %%
figure, axes = plt.subplots(figsize=(5.5, 3.4))
for name, row in table.items():
    (line,) = axes.loglog(STEPS, [x for x, _ in row], "o-", label=f"{name}: certified")
    axes.loglog(STEPS, [x for _, x in row], "x", color=line.get_color())
axes.axhline(ideal, color="grey", linestyle="--", label="exact flow")
axes.axhline(1, color="black", linewidth=0.5)
axes.set(xlabel="steps", ylabel="distance at the end / at the start", ylim=(0.2, 20))
axes.set_xticks(STEPS, STEPS)
axes.minorticks_off()
axes.legend()
plt.show()

# %% [markdown]
# Below 1 a method is proven to contract. Crosses are the ratios observed on 64 pairs.
#
# - With steps too long for the stiff part, $h > 2/L$, nothing contracts, whatever the
#   exact solution does, and the certificate does not claim it.
# - With short steps the certified factor approaches that of the exact flow.
# - Heun's and Ralston's methods are both of order two, and their observed ratios hardly
#   differ. But with 20 steps one is certified to contract and the other is not: a
#   certificate depends on the method, not only on the equation.
#
# ## Adaptive steps
#
# An adaptive solver chooses its steps from the state, so two solves may take
# different steps, and its map may jump. A map that jumps has no Lipschitz constant,
# and the bound is infinite:

# %%
print(jnode.amplification(field, jnode.Solver("tsit5"), t1=END))

# %% [markdown]
# An adaptive solver whose steps are only halved and doubled can be certified, for
# images: [Certifying an adaptive solver](../adaptive.md); which methods contract, in
# [certificates](../certificates.md).
