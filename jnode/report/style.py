"""The style of reports: the page's style sheet, and a palette and axes for print."""

import io
import warnings
from typing import TYPE_CHECKING, Any

from jnode.report.results import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe & Ito's colours, which colour-blind people can distinguish, each with a marker.
# Their black is grey here, to be visible on a dark page.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B")
MARKERS = "osD^vPX"
INK = "#333333"
LONGEST = 32


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches, outside pyplot's global state.

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
    """The colour and marker of the i-th run."""
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

    Matplotlib would parse dollar signs, and hide a label that begins with an
    underscore.
    """
    text = " ".join(printable(text).split())
    if len(text) > LONGEST:
        text = text[: LONGEST - 1] + "…"
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def tidy(axes: "Axes") -> None:
    """A light grid behind the data, and no frame at the top and right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def plain_ticks(axis: "Axis") -> None:
    """Plain numbers on a logarithmic axis, few enough not to overlap."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


def share_axis(axes: "Axes", label: str) -> None:
    """A percent axis from 0 to 100, with room for the markers."""
    axes.set_ylim(-3, 103)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel(label)


def legend(figure: "Figure", handles: dict[str, Any]) -> None:
    """One legend above all panels, in extra space, so that it hides nothing."""
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
        # Characters that the font lacks are drawn as boxes, without a warning.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


# Light, dark and on paper, without a single request.
STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8881; --warn: #D55E00;
        --dim: light-dark(#555, #aaa); }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 70rem; margin: 2.5rem auto;
       padding: 0 1.2rem; background: light-dark(#fff, #16181c);
       color: light-dark(#1c1e21, #e4e6e9); }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; margin: 3rem 0 .6rem; padding-top: .8rem;
     border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .2rem; overflow-wrap: anywhere; }
p, li, figcaption { max-width: 46rem; }
.dim, figcaption { color: var(--dim); }
.dot { display: inline-block; width: .75em; height: .75em; border-radius: 50%;
       background: var(--c); margin-right: .45em; }
.cards { display: grid; gap: 1rem; margin: 1.6rem 0;
         grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); }
.card { border: 1px solid var(--line); border-top: 5px solid var(--c);
        border-radius: 8px; padding: .7rem 1rem 1rem; break-inside: avoid; }
.card h2 { margin: 0 0 .5rem; padding: 0; border: 0; font-size: 1.05rem;
           overflow-wrap: anywhere; }
.card dl { display: grid; grid-template-columns: repeat(3, 1fr); gap: .3rem .8rem;
           margin: 0; }
.card div { display: flex; flex-direction: column; }
.card dt { order: 2; font-size: .82rem; line-height: 1.3; color: var(--dim); }
.card dd { margin: 0; font-size: 1.7rem; font-weight: 650; line-height: 1.25;
           font-variant-numeric: tabular-nums; }
.card small { font-size: .55em; font-weight: 400; }
.flag { border-left: 5px solid var(--warn); border-radius: 4px; padding: .5rem .9rem;
        margin: .6rem 0; max-width: 46rem; overflow-wrap: anywhere;
        background: color-mix(in srgb, var(--warn) 12%, transparent); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--line);
         font-variant-numeric: tabular-nums; font-weight: 400; }
thead th { font-weight: 650; border-bottom-width: 2px; overflow-wrap: anywhere;
           min-width: 7rem; }
th:first-child { text-align: left; white-space: nowrap; }
.results { width: min(100%, 18rem + 17rem * var(--runs)); }
.results td { min-width: 8rem; width: calc(75% / var(--runs)); }
.results td.bar { background: linear-gradient(to right,
    color-mix(in srgb, var(--c) 30%, transparent) var(--v), transparent 0); }
.results td.bar.proven { background: linear-gradient(to right,
    color-mix(in srgb, var(--c) 60%, transparent) var(--v), transparent 0); }
tr.group th:first-child { white-space: normal; }
tr.group th { font-weight: 650; font-size: .88rem; padding-top: 1rem; }
.checks th, .checks td { text-align: left; vertical-align: top; }
.checks td { max-width: 46rem; overflow-wrap: anywhere; }
.checks td .dim { display: block; font-size: .88rem; }
.checks .mark { display: block; font-size: .82rem; color: var(--dim); }
.checks .flagged { background: color-mix(in srgb, var(--warn) 12%, transparent); }
.checks .flagged .mark { color: var(--warn); font-weight: 650; }
figure { margin: 1.2rem 0 2rem; break-inside: avoid; }
figure img { display: block; max-width: 100%; background: white; border-radius: 8px;
             padding: .5rem; border: 1px solid var(--line); }
figcaption { margin-top: .5rem; font-size: .93rem; position: sticky; left: 0; }
details { margin: .5rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--soft); padding: .8rem; font-size: .82rem;
      border-radius: 6px; }
/* On a telephone a figure scrolls, as its labels could not be read any smaller. */
@media screen and (max-width: 40rem) {
  figure { overflow-x: auto; } figure img { max-width: max(100%, 40rem); }
}
@media print {
  :root { color-scheme: light; print-color-adjust: exact;
          -webkit-print-color-adjust: exact; }
  body { margin: 0; max-width: none; font-size: 11pt; }
  details { display: none; } h2, h3 { break-after: avoid; }
}
"""
