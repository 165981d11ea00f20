# %% [markdown]
# # Train, attack and certify in five minutes
#
# An Ortho-ODE on the 4,000 digits that come with jnode's `data` extra: trained,
# attacked, and certified. On two CPU cores this takes a few minutes, most of which is
# compilation.

# %%
import dataclasses
import tempfile

import jax
import matplotlib.pyplot as plt
import numpy as np

import jnode
from jnode import attacks, certify
from jnode.data import to_float
from jnode.train import get_preset, train

# %% [markdown]
# ## The model
#
# The preset `ortho` maps an image to a grid of channels by an isometry. Two steps of
# RK4 then solve $y' = L\,W_2\,\sigma(W_1 y + b_1) + b_2$ with orthogonal $W_1, W_2$,
# and a linear head gives the logits. To be quick, we train five epochs instead of
# twenty.

# %%
config = dataclasses.replace(get_preset("ortho"), epochs=5)
folder = tempfile.mkdtemp()
model = train(config, folder, overwrite=True, progress=False)
print(model.solver, f"certified Lipschitz constant {model.lipschitz():.3f}")

# %% [markdown]
# The constant is the product of the layers' constants. That of the ODE block bounds
# the factor by which two RK4 steps can move two states apart. It depends only on the
# field's Lipschitz constant and the steps, so training does not change it.

# %%
for layer, constant in zip(model.layers, model.bounds().layers, strict=False):
    print(f"{type(layer).__name__:14} {constant:.3f}")

# %% [markdown]
# ## Attack
#
# Attacks call the model many times, so `resolve` first computes the orthogonal maps
# once. Gradients are taken through the solver that is evaluated. Here FGSM and PGD
# attack two hundred test images:

# %%
digits = jnode.data.load("mnist5k", split="test")
images, labels = to_float(digits.images[:200]), digits.labels[:200]
plain, bounds = jnode.resolve(model)
classify = jnode.batched(plain)

distances = (0.25, 0.5, 1.0)
tried = [
    (attack, attacks.Budget("l2", distance))
    for distance in distances
    for attack in (attacks.FGSM(), attacks.PGD(steps=20))
]
found = jnode.evaluate(classify, images, labels, tried, progress=False)
print(f"clean accuracy {found.summary['clean_accuracy']:.3f}")
for row in found.summary["worst_case"]:
    print(f"L2 {row['epsilon']}: {row['robust_accuracy']:.3f} robust to both")

# %% [markdown]
# Accuracy under attack is an *upper* bound on robust accuracy: another attack may do
# better.
#
# ## Certify
#
# A certificate is a *lower* bound, which no attack can undercut: within its radius an
# image keeps its prediction.

# %%
radii = certify.certified_radii(model, images, labels)  # -1 where it is wrong
for row in certify.certified_accuracy(radii, distances):
    print(f"L2 {row['radius']}: {row['certified_accuracy']:.3f} certified")

# %%
grid = np.linspace(0, 1.5, 100)
proven = [(radii >= r).mean() for r in grid]
under_attack = [row["robust_accuracy"] for row in found.summary["worst_case"]]
figure, axes = plt.subplots(figsize=(5.5, 3.2))
axes.plot(grid, proven, label="certified")
axes.plot(distances, under_attack, "o", label="robust to FGSM and PGD")
axes.set(xlabel="L2 distance", ylabel="accuracy", ylim=(0, 1))
axes.legend(loc="lower left")
plt.show()

# %% [markdown]
# Robust accuracy lies between the line and the points. An attack that succeeds within
# a certified radius would refute the certificate:

# %%
robust = found.outcome.robust
distance = np.array([budget.epsilon for _, budget in tried])[:, None]
certified = radii[None] >= distance
print("successes within a certified radius:", int((certified & ~robust).sum()))
assert not (certified & ~robust).any()

# %% [markdown]
# ## One image
#
# The image of the largest radius, and what a perturbation of that length looks like.

# %%
best = int(np.argmax(radii))
noise = jax.random.normal(jax.random.key(0), images[best].shape)
moved = np.clip(images[best] + radii[best] * noise / np.linalg.norm(noise), 0, 1)
figure, axes = plt.subplots(1, 2, figsize=(5.5, 2.6))
titles = (f"a certified {labels[best]}", f"at a distance of {radii[best]:.2f}")
for ax, image, title in zip(axes, (images[best], moved), titles, strict=True):
    ax.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
    ax.set_title(title)
    ax.axis("off")
plt.show()
assert int(plain(moved).argmax()) == labels[best]

# %% [markdown]
# More certified accuracy comes from contractive fields, the margin loss and longer
# training: [training for certificates](../training.md#training-for-certificates).
# What the proof assumes: [certificates](../certificates.md).
