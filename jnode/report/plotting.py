"""What all figures share: a palette, axes that read well in print, and PNG."""

import io
import warnings
from typing import TYPE_CHECKING, Any

from jnode.report.run_report import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours, which colour-blind people tell apart, and a marker to each;
# their black is grey here, so that it can be seen on a dark page.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B")
MARKERS = "osD^vPX"
INK = "#333333"
LONGEST = 32


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, outside pyplot's global state.

    **Raises:** `ImportError` without Matplotlib.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError(
            'Figures need matplotlib: pip install "jnode[report]".'
        ) from error
    # The space keeps a panel's last tick label off the first of the next.
    layout = ConstrainedLayoutEngine(wspace=0.04)
    return Figure(figsize=(width, height), layout=layout)


def colour(i: int) -> str:
    """The colour of the i-th run, the same in every figure."""
    return COLOURS[i % len(COLOURS)]


def style(i: int) -> dict[str, Any]:
    """How the i-th run is drawn: colour and marker, for print and for every eye."""
    return {
        "color": colour(i),
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 6,
        "markeredgecolor": "white",
        "markeredgewidth": 0.8,
        "linewidth": 2,
    }


def plain(text: str) -> str:
    """A name as a label: one line, no mathematics, not too long.

    Matplotlib would parse dollars, and hide a label that begins with an underscore.
    """
    text = " ".join(printable(text).split())
    if len(text) > LONGEST:
        text = text[: LONGEST - 1] + "…"
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def tidy(axes: "Axes") -> None:
    """Light grid behind the data, no frame above and right of it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def share_axis(axes: "Axes", label: str) -> None:
    """A percent axis from 0 to 100, with room for the markers."""
    axes.set_ylim(-3, 103)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel(label)


def legend(figure: "Figure", handles: dict[str, Any]) -> None:
    """One legend above all panels, where it can hide nothing, in added room."""
    # As many columns as the longest label lets stand beside each other, in inches.
    width, height = figure.get_size_inches()
    columns = int(width / (0.65 + 0.078 * max(map(len, handles))))
    columns = min(max(columns, 1), len(handles))
    figure.set_figheight(height + 0.19 * (-(-len(handles) // columns) - 1))
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )


def to_png(figure: "Figure", *, dpi: int = 150) -> bytes:
    """The figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes: no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
