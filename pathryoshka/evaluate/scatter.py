"""The plot of score against price: where an encoder stands between cheap and good."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from pathryoshka.evaluate.pictures import HALO, MARKERS, STYLE, furnish, light, short, thousands
from pathryoshka.evaluate.scores import Cost, Scores

PROTOCOL = "linear"


def mean_scores(scores: Scores) -> dict[tuple[str, int], float]:
    """(encoder, width) -> mean over data sets with classes by linear probe, for what was scored on all of them."""
    num_sets = sum(d.task == "classification" for d in scores.datasets)
    found: dict[tuple[str, int], list[float]] = {}
    for row in scores.rows:
        if row.protocol == PROTOCOL:
            found.setdefault((row.encoder, row.width), []).append(row.score)
    return {key: sum(v) / len(v) for key, v in found.items() if len(v) == num_sets}


def priced(scores: Scores) -> list[Cost]:
    return [c for c in scores.costs if c.kind in ("student", "teacher", "other")]


def price_figure(scores: Scores, *, narrow: bool = False) -> Figure | None:
    """Mean score against GFLOP a tile (parameters where GFLOP were not counted); None for a single encoder.

    A student stands as a column of dots, one a width: all cost the same to compute, and less the narrower to keep.
    """
    costs = priced(scores)
    by_flop = all(c.gflop for c in costs)
    means = mean_scores(scores)
    if len(costs) < 2 or not means:
        return None
    teachers = [c.encoder for c in costs if c.kind != "student"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.1, 3.6) if narrow else (9.4, 3.8), layout="constrained", facecolor=light("paper"))
        ax = figure.subplots()
        for c in costs:
            price = c.gflop if by_flop and c.gflop else c.num_params
            dots = sorted((w, s) for (name, w), s in means.items() if name == c.encoder)
            if not dots:
                continue
            if c.kind == "student":
                ax.plot([price] * len(dots), [s for _, s in dots], color=light("student"), linewidth=1, alpha=0.5)
                for i, (width, score) in enumerate(dots):
                    size = 4 + 5 * (i + 1) / len(dots)
                    ax.plot(price, score, "o", color=light("student"), markersize=size, zorder=5)
                    if i in (0, len(dots) - 1):
                        ax.annotate(f"{c.encoder}, {width}", (price, score), (9, 0), textcoords="offset points",
                                    va="center", color=light("student"), path_effects=HALO, zorder=6)  # fmt: skip
                continue
            i = teachers.index(c.encoder)
            colour, score = light(f"teacher{i % 5}"), dots[-1][1]
            ax.plot(price, score, MARKERS[i % 5], color=colour, markersize=8)
            ax.annotate(c.encoder, (price, score), (-9, 0), textcoords="offset points", va="center", ha="right",
                        color=colour, path_effects=HALO)  # fmt: skip
        ax.set_xscale("log")
        low, high = ax.get_xlim()
        ax.set_xlim(low / 1.6, high * 1.6)
        ticks = [n * 10.0**e for e in range(-4, 13) for n in (1, 2, 5)]
        ax.set_xticks([tick for tick in ticks if low / 1.6 <= tick <= high * 1.6])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if by_flop else thousands(v)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        ax.set_xlabel("GFLOP a tile" if by_flop else "parameters", color=light("faint"))
        ax.set_ylabel("balanced accuracy, mean", color=light("faint"))
        furnish(ax)
    return figure


def describe_prices(scores: Scores) -> str:
    """What the plot shows, for those who do not see it."""
    means = mean_scores(scores)
    costs = priced(scores)
    by_flop = all(c.gflop for c in costs)
    parts = [
        f"{c.encoder}: {f'{c.gflop:.3g} GFLOP' if by_flop else f'{thousands(c.num_params)} parameters'}, "
        + ", ".join(f"{short(s)} at {w}" for (name, w), s in sorted(means.items()) if name == c.encoder)
        for c in costs
    ]
    return "Mean balanced accuracy of a linear probe against cost a tile. " + "; ".join(parts) + "."
