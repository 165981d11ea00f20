"""The result of benchmarks/speed.py as a figure: how many times jnode's time."""

from speed_contestants import OPERATIONS

from jnode.report.style import COLOURS, INK, legend, new_figure, tidy


def figure(result):
    """A panel a group, a bar a contestant and operation, on a logarithmic axis."""
    groups = {
        group: {name: row for name, row in rows.items() if not isinstance(row, str)}
        for group, rows in result["groups"].items()
    }
    rows = [len(times) for times in groups.values()]
    drawn = new_figure(7.6, 0.9 + 0.52 * sum(rows))
    panels = drawn.subplots(
        len(groups), 1, sharex=True, height_ratios=rows, squeeze=False
    )[:, 0]
    handles = {}
    for axes, (group, times) in zip(panels, groups.items(), strict=True):
        names = list(times)
        for i, operation in enumerate(OPERATIONS):
            ours = times["jnode"][operation]["ms"]
            ratios = [times[n][operation]["ms"] / ours for n in names]
            places = [k + 0.26 * (i - 1) for k in range(len(names))]
            bars = axes.barh(places, ratios, 0.24, color=COLOURS[i], zorder=2)
            handles[operation] = bars
            for place, ratio in zip(places, ratios, strict=True):
                beside = 1.04 * max(ratio, 1)  # right of the line at 1
                axes.text(beside, place, _short(ratio), va="center", fontsize=7)
        tidy(axes)
        axes.set_title(group, fontsize=10, loc="left")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.axvline(1, color=INK, linewidth=1, zorder=3)
        axes.set_xscale("log")
    largest = max(
        times[n][o]["ms"] / times["jnode"][o]["ms"]
        for times in groups.values()
        for n in times
        for o in OPERATIONS
    )
    panels[-1].set_xlim(0.5, 1.8 * largest)
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100]
    ticks = [tick for tick in ticks if tick < largest]
    panels[-1].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panels[-1].minorticks_off()
    panels[-1].set_xlabel("times as long as jnode (less is faster)")
    legend(drawn, handles)
    return drawn


def _short(ratio):
    """Two or three digits, never an exponent."""
    return f"{ratio:.{2 if ratio < 2 else 1 if ratio < 10 else 0}f}"
