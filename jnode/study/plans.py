"""The declared studies: each a list of cells."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from jnode.solvers import Solver
from jnode.study.cells import MODELS, Cell, Measures, configure
from jnode.train import DataConfig, TrainConfig

DOPRI5 = Solver("dopri5", rtol=1e-3, atol=1e-4)
FINEST = Solver("rk4", steps=16)
ALL = tuple(MODELS)
# Yan et al., ICLR 2020: noise, FGSM, and PGD of ten steps.
TISODE = (
    "gaussian:100/255",
    "fgsm:linf:0.15",
    "fgsm:linf:0.3",
    "fgsm:linf:0.5",
    "pgd:linf:0.2:10",
    "pgd:linf:0.3:10",
)
PHOTOGRAPHS = ("pgd:linf:8/255:20", "pgd:l2:36/255:20", "pgd:l2:0.5:20")
DIGIT_RADII = (0.5, 1.0, 1.58)
PHOTOGRAPH_RADII = (36 / 255, 72 / 255, 108 / 255)


def few_steps(epsilon: float) -> tuple[str, ...]:
    """White- and black-box attacks of a few steps each, in Linf."""
    names = ("pgd:{}:20", "apgd-t:{}:20:3", "square:{}:300")
    return tuple(name.format(f"linf:{epsilon}") for name in names)


def _models(
    dataset: DataConfig,
    *,
    channels: int,
    epochs: int,
    trained: Sequence[tuple[str, Sequence[str]]],
    seeds: Sequence[int],
    measures: Measures,
    epsilon: float = 0.2,
    rho: float = 0.5,
) -> Iterator[Cell]:
    """Cells for each seed, training and model, ordered by seed."""
    for seed in seeds:
        for training, models in trained:
            for model in models:
                config = configure(
                    model,
                    training,
                    dataset,
                    channels=channels,
                    epochs=epochs,
                    seed=seed,
                    epsilon=epsilon,
                    rho=rho,
                )
                yield Cell("models", model, training, config, measures)


def _solvers(
    model: str,
    config: TrainConfig,
    fixed: Sequence[str],
    steps: Sequence[int],
    adaptive: Sequence[str],
    tolerances: Sequence[float],
    measures: Measures,
) -> Iterator[Cell]:
    """A model trained once, naturally, and evaluated with every solver."""
    solvers = [
        Solver(name, rtol=rtol, atol=rtol / 10, max_steps=4096)
        for rtol in tolerances
        for name in adaptive
    ]
    solvers += [Solver(name, steps=n) for n in steps for name in fixed]
    for solver in solvers:
        yield Cell("solvers", model, "natural", config, measures, solver)


def _lipschitz(
    dataset: DataConfig,
    *,
    constants: Sequence[float],
    epochs: int,
    seeds: Sequence[int],
    measures: Measures,
) -> Iterator[Cell]:
    """The Ortho field at several constants, and the free field of the same form."""
    for seed in seeds:
        for constant in constants:
            config = configure(
                "ortho",
                "natural",
                dataset,
                lipschitz=constant,
                channels=1,
                epochs=epochs,
                seed=seed,
            )
            yield Cell("lipschitz", f"ortho-L{constant:g}", "natural", config, measures)
        config = configure(
            "odenet", "natural", dataset, channels=1, epochs=epochs, seed=seed
        )
        yield Cell("lipschitz", "ortho-Linf", "natural", config, measures)


def _coarse(dataset, epochs, pairs, steps, measures) -> Iterator[Cell]:
    """Models trained with one number of Euler steps and evaluated with others."""
    for model, n in pairs:
        config = configure(
            model,
            "natural",
            dataset,
            channels=1,
            epochs=epochs,
            solver=Solver("euler", steps=n),
        )
        for m in steps:
            solver = Solver("euler", steps=m)
            yield Cell(
                "steps", f"{model}-euler{n}", "natural", config, measures, solver
            )


def small() -> list[Cell]:
    """A small version of each part, on the embedded MNIST digits."""
    digits, epochs = DataConfig(), 8
    models = _models(
        digits,
        channels=1,
        epochs=epochs,
        trained=[
            ("natural", ("cnn", "odenet", "ortho", "contractive")),
            ("margin", ("contractive",)),
            ("adversarial", ("odenet",)),
        ],
        seeds=(0,),
        measures=Measures(
            TISODE, 200, budgets=(("linf", 0.1),), num_ensemble=50, radii=DIGIT_RADII
        ),
    )
    lipschitz = _lipschitz(
        digits,
        constants=(0.25,),
        epochs=epochs,
        seeds=(0,),
        measures=Measures(
            few_steps(0.1), 100, radii=(0.5,), tightness=True, adaptive=DOPRI5
        ),
    )
    odenet = configure("odenet", "natural", digits, channels=1, epochs=epochs)
    measures = Measures(few_steps(0.05), 100, via=FINEST)
    solvers = _solvers(
        "odenet",
        odenet,
        ("euler", "rk4"),
        (1, 4),
        ("dopri5",),
        (1e-2,),
        measures,
    )
    coarse = _coarse(digits, epochs, [("odenet", 1)], (1, 8), measures)
    return [*models, *lipschitz, *solvers, *coarse]


def mnist() -> list[Cell]:
    """All models on MNIST: the protocol of TisODE, and AutoAttack beside it.

    Three seeds for the four models whose order is in question, naturally trained; one
    seed for all others.
    """
    measures = Measures(
        TISODE,
        1000,
        budgets=(("linf", 0.1), ("linf", 0.2), ("linf", 0.3)),
        num_ensemble=200,
        radii=DIGIT_RADII,
    )
    common = {"channels": 1, "measures": measures}
    few = ("cnn", "odenet", "ortho", "contractive")
    everything = [("natural", ALL), ("noise", ALL[:-1]), ("margin", few[2:])]
    digits = DataConfig("mnist")
    return [
        *_models(digits, epochs=2, trained=everything, seeds=(0,), **common),
        *_models(
            digits,
            epochs=8,
            trained=[("adversarial", few[1:2])],
            seeds=(0,),
            epsilon=0.25,
            **common,
        ),
        *_models(
            digits,
            epochs=2,
            trained=[("natural", few)],
            seeds=(1, 2),
            **common,
        ),
    ]


def _photographs(
    name: str, epochs: int, trained: Sequence[tuple[str, Sequence[str]]]
) -> list[Cell]:
    measures = Measures(
        PHOTOGRAPHS,
        500,
        budgets=(("linf", 8 / 255), ("l2", 36 / 255)),
        num_ensemble=200,
        radii=PHOTOGRAPH_RADII,
    )
    cells = _models(
        DataConfig(name, flip=True, pad=2),
        channels=3,
        epochs=epochs,
        trained=trained,
        seeds=(0,),
        measures=measures,
        epsilon=8 / 255,
        rho=0.25,
    )
    return list(cells)


def cifar10() -> list[Cell]:
    """Most models on CIFAR-10."""
    some = ("cnn", "odenet", "tisode", "ortho", "contractive")
    robust = ("adversarial", ("odenet",))
    trained = [("natural", some), ("margin", some[3:]), robust]
    return _photographs("cifar10", 4, trained)


def cifar100() -> list[Cell]:
    """The models whose order is in question on CIFAR-100."""
    return _photographs("cifar100", 6, [("natural", ("cnn", "odenet", "contractive"))])


def solvers() -> list[Cell]:
    """Models trained once and evaluated with every solver; and numbers of Euler steps.

    Bounded models are evaluated with fixed steps only, as these are certified.
    """
    digits, steps = DataConfig("mnist"), (1, 2, 4, 8, 16, 32)
    odenet, ortho, contractive = (
        configure(model, "natural", digits, channels=1, epochs=2)
        for model in ("odenet", "ortho", "contractive")
    )
    measures = Measures(few_steps(0.05), 100, via=FINEST)
    proven = dataclasses.replace(measures, radii=(0.5,))
    fixed = ("euler", "heun", "rk4")
    adaptive = ("bosh3", "tsit5", "dopri5")
    tolerances = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    return [
        *_coarse(digits, 2, [("odenet", 1), ("odenet", 4)], steps, measures),
        *_solvers("odenet", odenet, fixed, steps, adaptive, tolerances, measures),
        *_solvers("ortho", ortho, fixed, steps, (), (), proven),
        # At least one step for each of its four segments.
        *_solvers("contractive", contractive, fixed, steps[2:], (), (), proven),
    ]


def lipschitz() -> list[Cell]:
    """The Ortho field from L = 0.25 to 8, and without a constraint."""
    measures = Measures(
        few_steps(0.1), 300, radii=(0.25, 0.5, 1.0), tightness=True, adaptive=DOPRI5
    )
    return [
        *_lipschitz(
            DataConfig("mnist"),
            constants=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
            epochs=2,
            seeds=(0, 1, 2),
            measures=measures,
        )
    ]


STUDIES: dict[str, Callable[[], list[Cell]]] = {
    study.__name__: study
    for study in (small, mnist, cifar10, cifar100, solvers, lipschitz)
}
