"""Images and their adversarial twins."""

from typing import TYPE_CHECKING

import numpy as np

from jnode.report.figures.base import COLOURS, INK, new_figure, plain
from jnode.report.pictures import Pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT, WRONG = COLOURS[2], COLOURS[1]


def images(pictures: Pictures, *, count: int = 8) -> "Figure":
    """Images, their adversarial twins, and the magnified difference, with predictions.

    A tick or a cross beside a prediction says whether it is right, so colour is not
    needed to see it.
    """
    count = min(count, len(pictures.clean))
    figure = new_figure(1.2 * count + 0.9, 4.25)
    rows = figure.subplots(3, count, squeeze=False)
    difference = pictures.adversarial[:count] - pictures.clean[:count]
    largest = max(float(np.abs(difference).max(initial=0)), 1e-9)
    stacks = (pictures.clean, pictures.adversarial, 0.5 + difference / (2 * largest))
    guesses = (pictures.clean_predictions, pictures.adversarial_predictions)
    for r, stack in enumerate(stacks):
        for c in range(count):
            axes = rows[r][c]
            _show(axes, stack[c])
            if r < 2:
                guess = int(guesses[r][c])
                right = guess == int(pictures.labels[c])
                _say(axes, f"{'✓' if right else '✗'} {_name(pictures, guess)}", right)
    magnified = f"change × {0.5 / largest:.2g}\n(grey = none)"
    for r, label in enumerate(("clean", "attacked", magnified)):
        rows[r][0].set_ylabel(label, fontsize=10, color=INK)
    return figure


def _name(pictures: Pictures, guess: int) -> str:
    name = "NaN" if guess < 0 else pictures.class_name(guess)
    return plain(name if len(name) <= 11 else name[:10] + "…")


def _show(axes, image) -> None:
    image = np.clip(image, 0, 1)
    if image.shape[-1] == 1:
        axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(image, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _say(axes, text: str, right: bool) -> None:
    colour = RIGHT if right else WRONG
    weight = "normal" if right else "bold"
    axes.set_title(text, fontsize=10, color=colour, fontweight=weight, pad=3)
