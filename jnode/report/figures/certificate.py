"""One model's certificates, below what attacks left standing."""

from typing import TYPE_CHECKING, Any

import numpy as np

from jnode.report.figures.base import colour, new_figure, share_axis, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def certificate(summary: dict[str, Any]) -> "Figure":
    """Certified accuracy against the L2 radius, and accuracy under attack above it.

    **Arguments:** what `certificate.json` holds.
    """
    figure = new_figure(7.5, 4.4)
    axes = figure.add_subplot()
    curve, attacked = summary["curve"], summary["attacked"]
    x = np.asarray(curve["radius"])
    proven, local = (
        100 * np.asarray(curve[name])
        for name in ("certified_accuracy", "certified_locally")
    )
    points = [(0.0, attacked["clean_accuracy"])]
    points += [(row["radius"], row["robust_accuracy"]) for row in attacked["rows"]]
    u, v = np.asarray(points).T
    axes.plot(
        u,
        100 * v,
        "--o",
        color=colour(1),
        linewidth=2,
        label=f"standing after {attacked['attack']} (upper bound)",
    )
    gap = x <= u[-1]
    upper = np.interp(x[gap], u, 100 * v)
    axes.fill_between(x[gap], local[gap], upper, color=colour(1), alpha=0.12, lw=0)
    if np.any(local > proven):
        axes.plot(x, local, color=colour(5), linewidth=2, label="certified locally")
    axes.plot(
        x, proven, color=colour(0), linewidth=2.5, label="certified (lower bound)"
    )
    tidy(axes)
    share_axis(axes, f"accuracy on {attacked['num_examples']} test images (%)")
    # Past where nothing is proven or attacked there is nothing to see.
    seen = float(x[local > 1].max(initial=0))
    axes.set_xlim(0, 1.03 * max(seen, float(u[-1]), 1e-3))
    axes.set_xlabel("$L_2$ radius (pixels in [0, 1])")
    axes.legend(frameon=False, fontsize=9)
    return figure
