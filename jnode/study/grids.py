"""Grids of cells: models and trainings, solvers, Lipschitz constants, steps."""

from collections.abc import Iterator, Sequence

from jnode.solvers import Solver
from jnode.study.cells import Cell, Measures, configure
from jnode.train import DataConfig, TrainConfig

DOPRI5 = Solver("dopri5", rtol=1e-3, atol=1e-4)
FINEST = Solver("rk4", steps=16)
# Yan et al., ICLR 2020: noise, FGSM, and PGD of ten steps.
TISODE = (
    "gaussian:100/255",
    "fgsm:linf:0.15",
    "fgsm:linf:0.3",
    "fgsm:linf:0.5",
    "pgd:linf:0.2:10",
    "pgd:linf:0.3:10",
)
DIGIT_RADII = (0.5, 1.0, 1.58)
PHOTOGRAPHS = ("pgd:linf:8/255:20", "pgd:l2:36/255:20", "pgd:l2:0.5:20")
PHOTOGRAPH_RADII = (36 / 255, 72 / 255, 108 / 255)


def few_steps(epsilon: float) -> tuple[str, ...]:
    """White- and black-box attacks of a few steps each, in Linf."""
    names = ("pgd:{}:20", "apgd-t:{}:20:3", "square:{}:300")
    return tuple(name.format(f"linf:{epsilon}") for name in names)


def models(
    dataset: DataConfig,
    *,
    channels: int,
    epochs: int,
    trained: Sequence[tuple[str, Sequence[str]]],
    seeds: Sequence[int],
    measures: Measures,
    epsilon: float = 0.2,
    rho: float = 0.5,
    logit_scale: float = 1.0,
) -> Iterator[Cell]:
    """Cells for each seed, training and model, ordered by seed."""
    for seed in seeds:
        for training, names in trained:
            for model in names:
                config = configure(
                    model,
                    training,
                    dataset,
                    channels=channels,
                    epochs=epochs,
                    seed=seed,
                    epsilon=epsilon,
                    rho=rho,
                    logit_scale=logit_scale,
                )
                yield Cell("models", model, training, config, measures)


def solvers(
    model: str,
    config: TrainConfig,
    fixed: Sequence[str],
    steps: Sequence[int],
    adaptive: Sequence[str],
    tolerances: Sequence[float],
    measures: Measures,
) -> Iterator[Cell]:
    """A model trained once, naturally, and evaluated with every solver."""
    every = [
        Solver(name, rtol=rtol, atol=rtol / 10, max_steps=4096)
        for rtol in tolerances
        for name in adaptive
    ]
    every += [Solver(name, steps=n) for n in steps for name in fixed]
    for solver in every:
        yield Cell("solvers", model, "natural", config, measures, solver)


def lipschitz(
    dataset: DataConfig,
    *,
    channels: int,
    epochs: int,
    constants: Sequence[float],
    seeds: Sequence[int],
    measures: Measures,
    logit_scale: float = 1.0,
) -> Iterator[Cell]:
    """The Ortho field at several constants, and without its constraint."""
    for seed in seeds:
        common: dict = {"channels": channels, "epochs": epochs, "seed": seed}
        common |= {"logit_scale": logit_scale}
        for constant in constants:
            config = configure(
                "ortho", "natural", dataset, lipschitz=constant, **common
            )
            yield Cell("lipschitz", f"ortho-L{constant:g}", "natural", config, measures)
        config = configure("free", "natural", dataset, **common)
        yield Cell("lipschitz", "ortho-Linf", "natural", config, measures)


def coarse(
    dataset: DataConfig,
    pairs: Sequence[tuple[str, int]],
    steps: Sequence[int],
    measures: Measures,
    *,
    channels: int,
    epochs: int,
    logit_scale: float = 1.0,
) -> Iterator[Cell]:
    """Models trained with one number of Euler steps and evaluated with others."""
    for model, n in pairs:
        config = configure(
            model,
            "natural",
            dataset,
            channels=channels,
            epochs=epochs,
            logit_scale=logit_scale,
            solver=Solver("euler", steps=n),
        )
        for m in steps:
            solver = Solver("euler", steps=m)
            yield Cell(
                "steps", f"{model}-euler{n}", "natural", config, measures, solver
            )


def photographs(
    name: str,
    epochs: int,
    trained: Sequence[tuple[str, Sequence[str]]],
    *,
    logit_scale: float,
) -> Iterator[Cell]:
    """Models on colour images, one seed each."""
    measures = Measures(
        PHOTOGRAPHS,
        500,
        budgets=(("linf", 8 / 255), ("l2", 36 / 255)),
        num_ensemble=500,
        radii=PHOTOGRAPH_RADII,
    )
    return models(
        DataConfig(name, flip=True, pad=2),
        channels=3,
        epochs=epochs,
        trained=trained,
        seeds=(0,),
        measures=measures,
        epsilon=8 / 255,
        rho=0.25,
        logit_scale=logit_scale,
    )
