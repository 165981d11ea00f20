"""Whether the other images of a batch change what is said of one."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.typing import ArrayLike

ROUNDING = 1e-4
"""How far logits may be apart, relative to the largest of them: the compiled programs
for other batch sizes sum in another order."""


@eqx.filter_jit
def _logits(model, images):
    return model(images)


def batch_mates(
    model: Callable, images: ArrayLike, *, samples: int = 16, seed: int = 0
) -> dict[str, Any]:
    """The same images in their batch, in another order, among strangers, and alone.

    A solver that chooses its steps for a whole batch makes one image's prediction
    depend on the others, and then nothing that is measured of it is a fact about the
    image. With step control for each sample there is no such effect.

    **Arguments:** a map from a batch of images to logits; images, of which the first
    `samples` are looked at (four of them alone); the seed of the strangers.

    **Returns:** per company, the share of predictions that change and the largest
    relative change of the logits; words and flags.
    """
    x = jnp.asarray(images)[:samples]
    n = len(x)
    here = np.asarray(_logits(model, x))
    scale = max(1.0, float(np.nanmax(np.abs(here))))
    key = jr.key(seed)
    # Strangers that are hard to solve for: noise of full contrast.
    noise = jr.bernoulli(key, 0.5, x.shape).astype(x.dtype)
    half = -(-n // 2)
    first = jnp.concatenate([x[:half], noise[half:]])
    second = jnp.concatenate([noise[:half], x[half:]])
    strangers = np.concatenate(
        [
            np.asarray(_logits(model, first))[:half],
            np.asarray(_logits(model, second))[half:],
        ]
    )
    alone = [np.asarray(_logits(model, x[i : i + 1]))[0] for i in range(min(4, n))]
    companies = {
        "another order": np.asarray(_logits(model, x[::-1]))[::-1],
        "among strangers": strangers,
        "alone": np.stack(alone),
    }
    rows, flags = {}, []
    for name, there in companies.items():
        ours = here[: len(there)]
        changed = float(np.mean(np.argmax(there, axis=1) != np.argmax(ours, axis=1)))
        apart = float(np.nanmax(np.abs(there - ours), initial=0.0)) / scale
        rows[name] = {"changed": changed, "logits": float(f"{apart:.3g}")}
        if changed > 0 or apart > ROUNDING:
            flags.append(
                f"batch mates: {name}, {changed:.1%} of the predictions change and "
                f"logits move by up to {apart:.1e} of the largest, so a batch is not "
                "many images but one: solve each sample by itself."
            )
    changed = max(row["changed"] for row in rows.values())
    apart = max(row["logits"] for row in rows.values())
    says = (
        f"{n} images evaluated in another order, among strangers and alone: "
        f"{changed:.1%} of the predictions change, logits by at most {apart:.1e} of "
        "the largest."
    )
    return {"companies": rows, "num_examples": n, "says": says, "flags": flags}
