"""Evaluating a run folder: attacks, certificate and pictures, written beside it."""

import os
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jnode import certify, data
from jnode._versions import versions
from jnode.attacks import AbstractAttack
from jnode.evaluation import PROTOCOLS, Store, budgets, describe, evaluate, plan, twins
from jnode.evaluation.check_model import check_model
from jnode.evaluation.checks import adjoint
from jnode.evaluation.cost import Cost, cost_of, estimate, minutes
from jnode.evaluation.recheck import recheck
from jnode.evaluation.store import described, fingerprint
from jnode.models import ODEClassifier
from jnode.models.batched import batched
from jnode.report import Pictures
from jnode.sharding import check_divides
from jnode.solvers import trajectory
from jnode.train import RunDir, load
from jnode.train.files import write_json

RADII = tuple(round(0.05 * i, 2) for i in range(41))
"""The L2 radii, in pixel units, at which certified accuracy is written."""


def evaluate_run(
    run_dir: str | os.PathLike,
    attacks: Sequence[AbstractAttack] = (),
    *,
    protocol: str | None = None,
    successive: bool = False,
    norm: str | None = None,
    epsilons: Sequence[float] = (),
    num_examples: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
    data_dir: str | os.PathLike | None = None,
    progress: bool = True,
    pictures: bool = True,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Attacks, checks and certifies the model of a run on its test images.

    Writes `evaluation.json` and `pictures.npz` into the run folder, and what each
    finished attack and check found into its folder `evaluation/`: called again with the
    same arguments after an interruption, it goes on from there.

    **Arguments:**

    - `run_dir`: the folder.
    - `attacks`: each run on all samples by itself, or, if `successive`, on what still
        stands of them; or else
    - `protocol`: "quick", "standard" or "full", whose attacks run on what still stands.
    - `norm`, `epsilons`: a protocol's budgets, by default those usual for the data.
    - `num_examples`: how many test images, by default all or the protocol's number.
    - `batch_size`: images at a time.
    - `seed`: of the attacks' random numbers.
    - `data_dir`: where the data lie, if elsewhere than in training.
    - `progress`: whether to say what it will cost, and to draw a progress bar.
    - `pictures`: whether to keep some attacked images for the report.
    - `mesh`: over what devices to spread each batch of attacks and certificates.

    **Returns:** what `evaluation.json` holds.

    **Raises:** `ValueError` for both attacks and a protocol, or an unknown protocol;
    `RuntimeError` while another process evaluates this run; what `jnode.load`,
    `jnode.data.load` and `jnode.evaluate` raise.
    """
    if (protocol is not None) == bool(attacks):
        raise ValueError("give either attacks or a protocol, one of them.")
    if protocol is not None and protocol not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise ValueError(f"protocol must be one of {known}, not {protocol!r}.")
    check_divides(batch_size, mesh)
    if protocol is None and (norm is not None or epsilons):
        raise ValueError("norm and epsilon belong to a protocol; attacks have theirs.")
    trained = load(run_dir)
    model = trained.bake()  # attacked many times; what is certified is the trained one
    run = RunDir(run_dir)
    config, facts = run.read_config()
    chosen = None if protocol is None else PROTOCOLS[protocol]
    test = data.load(
        config.data.name, split="test", data_dir=data_dir or config.data.dir
    )
    if num_examples is None and chosen is not None:
        num_examples = chosen.num_examples
    if num_examples is not None:
        test = test.take(num_examples)
    images = np.asarray(data.to_float(jnp.asarray(test.images)))
    through, wanted = {}, []
    if chosen is not None:
        wanted = budgets(test.name, norm, epsilons)
        through = twins(model, images, test.labels, chosen.twins)
        attacks = plan(chosen, wanted, through, classes=test.num_classes)
    successive |= chosen is not None
    found = versions()
    arguments = {
        "the model": fingerprint(run.path / "model.eqx", config.solver),
        "the data": fingerprint(images, test.labels),
        "the attacks": described(attacks),
        "the protocol": [protocol, successive, seed, batch_size],
        "the versions": found,
    }
    # Held to the end: another evaluation would write the same files.
    with Store(run.path / "evaluation", arguments) as store:
        cost, expected = None, None
        if chosen is not None:
            # Kept, so that an evaluation that goes on says what it said at first.
            timed = store.check(
                "cost",
                lambda: vars(cost_of(model, images, test.labels, through, batch_size)),
            )
            cost = Cost(**timed)
            expected = estimate(attacks, cost, len(test))
        if progress:
            news = _announce(protocol, attacks, len(test), cost, expected)
            for sentence in (store.news, news):
                if sentence:
                    print(sentence, flush=True)
        whole = batched(model)
        result = evaluate(
            whole,
            images,
            test.labels,
            attacks,
            batch_size=batch_size,
            seed=seed,
            successive=successive,
            store=store,
            cost=cost,
            progress=progress,
            mesh=mesh,
        )
        checks = {**result.summary["checks"]}
        checks["stored_images"] = recheck(
            whole, images, test.labels, attacks, result.attacked, batch_size=batch_size
        )
        if chosen is None:
            checks["adjoint"] = adjoint(model.solver)
        else:
            checks |= check_model(
                model,
                images,
                test.labels,
                chosen,
                wanted[0],
                seed=seed,
                keep=store.check,
            )
        raised = [*result.summary["flags"]]
        raised += [
            flag for k, c in checks.items() if k != "outputs" for flag in c["flags"]
        ]
        refusal = certify.refusal(trained)
        rows = []
        if refusal is None:
            radii = certify.certified_radii(
                trained, images, test.labels, batch_size=batch_size, mesh=mesh
            )
            rows = certify.certified_accuracy(radii, RADII)
            constant = float(trained.lipschitz())
            note = f"up to L = {constant:.4f} from pixels to features"
        else:
            note = refusal
        evaluations = _evaluations(model, images, batch_size)
        device = found.pop("device")
        summary = {
            "dataset": test.name,
            "split": test.split,
            "num_train": facts["num_train"],
            "protocol": protocol,
            "estimated_seconds": None if expected is None else round(sum(expected), 1),
            **result.summary,
            "checks": checks,
            "flags": raised,
            "solver": str(model.solver),
            "certified_accuracy": rows,
            "certificate": note,
            "rounding": certify.ALLOWANCE["rounding"],
            "assumed": certify.assumptions(trained),
            "nfe": float(np.mean(evaluations)),
            "nfe_largest": int(np.max(evaluations)),
            "versions": found,
            "device": device,
        }
        if pictures:
            kept = _pictures(model, images, test.labels, attacks, result)
            if kept is not None:
                kept.save(run.path)
        write_json(run.path / "evaluation.json", summary)
        return summary


@eqx.filter_jit
def count_evaluations(
    model: ODEClassifier, images: Float[Array, "n height width channels"]
) -> Int[Array, " n"]:
    """The NFE of each image's solve, of those that `max_steps` ends too."""
    return batched(model).solution(images, throw=False).stats["nfe"]


def _evaluations(model, images, batch_size) -> Int[np.ndarray, " n"]:
    """The NFE of each image's solve."""
    if not model.solver.adaptive:
        # Fixed steps: one number for all.
        return np.asarray(count_evaluations(model, jnp.asarray(images[:1])))
    length = min(batch_size, len(images))
    found = []
    for start in range(0, len(images), length):
        x = images[start : start + length]
        # Filled up, so that one compilation serves every batch.
        filled = jnp.asarray(x[np.arange(length) % len(x)])
        found.append(np.asarray(count_evaluations(model, filled))[: len(x)])
    return np.concatenate(found)


def _announce(protocol, attacks, n, cost, expected) -> str:
    """What a protocol will do and cost, before it starts."""
    if protocol is None:
        return ""
    work, compiling = expected
    return (
        f"Protocol {protocol}: {len(attacks)} attacks on {n} images take at most "
        f"{minutes(work)}, and some {minutes(compiling)} for compilation (a batch of "
        f"{cost.batch_size} takes {cost.forward:.3f} s, its gradient "
        f"{cost.gradient:.3f} s); samples that are broken are attacked no more."
    )


def _pictures(model, images, labels, attacks, result) -> Pictures | None:
    """Pairs under the strongest Linf attack, with their trajectories."""

    def rank(i):
        # Where later attacks were spared what earlier ones broke: one that saw most.
        return len(result.attacked[i].samples), attacks[i].steps, -i

    iterated = [i for i, a in enumerate(attacks) if a.norm == "linf"]
    if not iterated:
        return None
    chosen = max(iterated, key=rank)
    twins = result.attacked[chosen].shown
    n = len(twins)
    if n == 0:
        return None
    shown = result.attacked[chosen].samples[:n]

    @eqx.filter_jit
    def states(model, images):
        return jax.vmap(
            lambda x: trajectory(model.field, model.encoder(x), model.solver)[1]
        )(images)

    start = model.encoder(jnp.asarray(images[0]))
    times, _ = trajectory(model.field, start, model.solver)
    clean, attacked = (states(model, jnp.asarray(x)) for x in (images[shown], twins))
    difference = np.asarray(clean - attacked).reshape(n, len(times), -1)
    grid = jnp.asarray(times, jnp.float32)
    envelopes = [
        f(model.field, grid) for f in (certify.gronwall, certify.log_norm_envelope)
    ]
    return Pictures(
        attack=describe(attacks[chosen]),
        clean=images[shown],
        adversarial=twins,
        labels=labels[shown],
        clean_predictions=result.predictions[shown],
        adversarial_predictions=result.attacked[chosen].predictions[:n],
        times=np.asarray(grid),
        distances=np.linalg.norm(difference, axis=-1),
        gronwall=np.asarray(envelopes[0]),
        log_norm=np.asarray(envelopes[1]),
    )
