"""The plots: score against width, and what stays unexplained while training.

One drawing serves all: as SVG its colours become CSS variables and its letters the page's, so that it follows light,
dark and print; as PNG it stands alone. Colours are told apart by people who see fewer of them, and every line also has
its own dash, marker or name beside it.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FuncFormatter, MultipleLocator, NullLocator

from pathryoshka.evaluate.scores import DataSet, Row, Scores
from pathryoshka.evaluate.scoring import DRAWN, PROTOCOLS, UNITS
from pathryoshka.page import COLOURS, capital

MARKERS = ("D", "s", "^", "v", "P")
NESTED = {
    "student": ("student (95 %)", "-", "o", 2.6),
    "pca": ("PCA of teachers", "--", "o", 1.6),
    "start": ("student's start", ":", "o", 1.6),
    "random": ("random weights", (0, (1, 2)), "o", 1.2),
}
BAND = "95 % interval"
HALO = [Stroke(linewidth=3, foreground=COLOURS["paper"][0]), Normal()]
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "pathryoshka",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def light(name: str) -> str:
    return COLOURS[name][0]


def score_figure(scores: Scores, dataset: DataSet, *, narrow: bool = False, alone: bool = False) -> Figure:
    """Scores against width on one data set, an axes a protocol; `alone`: the first one only, with a headline."""
    chosen = drawn(scores, dataset)[: 1 if alone else None]
    rows = [r for r in scores.rows if r.dataset == dataset.name and r.protocol in chosen]
    chance = [] if dataset.chance is None else [dataset.chance]
    low, high = min([*chance, *(r.low for r in rows)]), max(r.high for r in rows)
    with mpl.rc_context(STYLE):
        shape = (len(chosen), 1) if narrow else (1, len(chosen))
        size = (4.1, 3.4 * len(chosen) + 0.6) if narrow else ((8.0, 4.5) if alone else (9.4, 4.3))
        figure = Figure(figsize=size, layout="constrained", facecolor=light("paper"))
        axes = figure.subplots(*shape, squeeze=False, sharey=not narrow).ravel()
        across = figure.get_figwidth() * 72 / shape[1] - 95  # before the layout is known
        for ax, probe in zip(axes, chosen, strict=True):
            ax.set_ylim(max(0, low - 0.04) if low >= 0 else low - 0.04, min(1.005, high + 0.05))
            draw_scores(
                ax, [r for r in rows if r.protocol == probe], dataset, line_height(figure, shape[0], ax), across
            )
            ax.set_title(PROTOCOLS[probe].title, loc="left", color=light("ink"), fontsize=11.5, fontweight="bold")
        if alone:
            note = " (PHANTOM tissue, drawn by a program)" if dataset.phantom else ""
            title = (
                f"{dataset.name}{note}: {dataset.num_tiles} {dataset.thing}s of {dataset.num_groups} {dataset.unit}s"
            )
            axes[0].set_title(title, loc="left", color=light("ink"), fontsize=11)
        for ax in axes if narrow else axes[:1]:
            ax.set_ylabel(f"{UNITS[dataset.task]}, unseen {dataset.unit}s", color=light("faint"))
        handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
        band = handles.pop(BAND, None)
        shown: Any = [
            (line, band) if band and i == 0 else line for i, line in enumerate(handles.values())
        ]  # one key, both marks
        figure.legend(
            shown, list(handles), loc="outside lower center", ncols=2 if narrow else 4, frameon=False,
            labelcolor=light("ink"), handlelength=2.6, columnspacing=1.4,
        )  # fmt: skip
    return figure


def drawn(scores: Scores, dataset: DataSet) -> tuple[str, ...]:
    """What is drawn of a data set: of the scores for its task, those that are there."""
    there = {row.protocol for row in scores.rows if row.dataset == dataset.name}
    return tuple(protocol for protocol in DRAWN[dataset.task] if protocol in there)


def line_height(figure: Figure, num_rows: int, ax: Axes) -> float:
    """What a line of text takes of the y axis, before the layout is known: 13 of its points of height."""
    points = (figure.get_figheight() * 72 - 40) / num_rows - 60
    low, high = ax.get_ylim()
    return 13 / points * (high - low)


def mark_scores(ax: Axes) -> None:
    """Ticks of the y axis, each with a number of its own: tenths where the limits are far apart, else hundredths."""
    low, high = ax.get_ylim()
    wide = high - low > 0.3
    if wide:
        ax.yaxis.set_major_locator(MultipleLocator(0.1 if high - low < 1.2 else 0.2))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value, 1 if wide else 2)))


def draw_scores(ax: Axes, rows: Sequence[Row], dataset: DataSet, gap: float, axis_width: float) -> None:
    """`gap`: height of a line of text on the y axis; `axis_width`: length of the x axis in points."""
    teachers = [r for r in rows if r.kind in ("teacher", "other")]
    widths = sorted({r.width for r in rows if r.kind not in ("teacher", "other")} or {r.width for r in rows})
    left, right = widths[0] / 1.18, max(r.width for r in rows) * 1.3
    apart = (right / left) ** (34 / axis_width)  # 34 points hold four digits
    if dataset.chance is not None:
        ax.axhline(dataset.chance, color=light("faint"), linewidth=0.9, dashes=(2, 3))
        ax.annotate("chance", (math.sqrt(widths[-1] * right), dataset.chance), (0, 3), textcoords="offset points",
                    fontsize=9, color=light("faint"), ha="center")  # fmt: skip
    for i, (kind, (label, dash, marker, thick)) in enumerate(NESTED.items()):
        for name in dict.fromkeys(r.encoder for r in rows if r.kind == kind):
            line = sorted((r for r in rows if r.encoder == name), key=lambda r: r.width)
            x, y = [r.width for r in line], [r.score for r in line]
            if kind == "student":
                band = ([r.low for r in line], [r.high for r in line])
                ax.fill_between(x, *band, color=light(kind), alpha=0.16, linewidth=0, label=BAND)
            ax.plot(x, y, color=light(kind), linestyle=dash, marker=marker, markersize=5 if i == 0 else 3.5,
                    linewidth=thick, label=label, zorder=5 - i)  # fmt: skip
            if kind == "student":
                for r in (line[0], line[-1]):
                    ax.annotate(short(r.score), (r.width, r.score), (0, -15), textcoords="offset points", ha="center",
                                color=light(kind), fontweight="bold", zorder=6, path_effects=HALO)  # fmt: skip
    for i, r in enumerate(teachers):
        colour = light(f"teacher{i % 5}")
        ax.plot([left, r.width], [r.score, r.score], color=colour, linewidth=0.8, alpha=0.55, zorder=1)
        ax.errorbar(r.width * 1.13 ** (i - (len(teachers) - 1) / 2), r.score, [[r.score - r.low], [r.high - r.score]],
                    color=colour, marker=MARKERS[i % 5], markersize=6, linewidth=1.2, zorder=4)  # fmt: skip
    for r, height, i in spread([(r, r.score, i) for i, r in enumerate(teachers)], gap):
        ax.annotate(f"{r.encoder} {short(r.score)}", (r.width * 1.26, height), (6, 0), textcoords="offset points",
                    va="center", color=light(f"teacher{i % 5}"), annotation_clip=False)  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_xlim(left, right)
    ax.set_xticks(thinned(widths, {r.width for r in teachers}, apart))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    mark_scores(ax)
    ax.set_xlabel("numbers kept of the embedding", color=light("faint"))
    furnish(ax)


def loss_figure(
    metrics: Sequence[Mapping[str, Any]], floors: Mapping[str, float], *, narrow: bool = False
) -> Figure | None:
    """Fraction of each teacher's variance unexplained at full width against views; None where nothing of it was logged.

    Args:
        metrics: lines of the run's log: `views` and `unexplained/<teacher>/<kind>/<width>`.
        floors: `<teacher>/<kind>` -> what no linear map from as many numbers could explain, drawn dashed.
    """
    keys = [
        key.split("/") for line in metrics for key in line if key.startswith("unexplained/") and key.count("/") == 3
    ]
    if not keys:
        return None
    kinds = [kind for kind in ("summary", "tokens") if any(key[2] == kind for key in keys)]
    teachers = list(dict.fromkeys(key[1] for key in keys))
    with mpl.rc_context(STYLE):
        shape = (len(kinds), 1) if narrow else (1, len(kinds))
        figure = Figure(figsize=(4.1, 3.1 * len(kinds)) if narrow else (9.4, 3.5), layout="constrained",
                        facecolor=light("paper"))  # fmt: skip
        axes = figure.subplots(*shape, squeeze=False, sharey=not narrow).ravel()
        for ax, kind in zip(axes, kinds, strict=True):
            full = max(int(key[3]) for key in keys if key[2] == kind)
            ends = []
            for i, teacher in enumerate(teachers):
                name = f"unexplained/{teacher}/{kind}/{full}"
                points = [(line["views"], line[name]) for line in metrics if name in line]
                if not points:
                    continue
                x, y = zip(*points, strict=True)
                colour = light(f"teacher{i % 5}")
                ax.plot(x, y, color=colour, linewidth=1.8, marker=MARKERS[i % 5], markevery=[-1], markersize=6)
                ends.append((teacher, y[-1], i))
                floor = floors.get(f"{teacher}/{kind}")
                if floor is not None:
                    ax.axhline(floor, color=colour, linewidth=1, linestyle=(0, (4, 3)))
            for teacher, y_text, i in spread(ends, 0.075):
                value = next(y for t, y, _ in ends if t == teacher)
                ax.annotate(f"{teacher} {short(value)}", (1.02, y_text), xycoords=("axes fraction", "data"),
                            va="center", color=light(f"teacher{i % 5}"), annotation_clip=False)  # fmt: skip
            top = max((max(line.get_ydata()) for line in ax.get_lines()), default=1.0)  # type: ignore[arg-type]
            ax.set_ylim(0, min(1.5, max(1.0, float(top)) * 1.04))
            ax.axhline(1, color=light("faint"), linewidth=0.9, dashes=(2, 3))
            ax.set_title("summary" if kind == "summary" else "tokens", loc="left", fontsize=11.5, fontweight="bold",
                         color=light("ink"))  # fmt: skip
            ax.set_xlabel("views presented", color=light("faint"))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))
            furnish(ax)
        for ax in axes if narrow else axes[:1]:
            ax.set_ylabel("fraction unexplained", color=light("faint"))
    return figure


def furnish(ax: Axes) -> None:
    ax.set_facecolor(light("paper"))
    ax.grid(axis="y", color=light("line"), linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=light("faint"), labelcolor=light("faint"), length=3)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(light("line"))


def spread(items: Sequence[tuple[Any, float, int]], gap: float) -> list[tuple[Any, float, int]]:
    """Heights of labels, moved apart to at least `gap` and as little as that takes, centre kept."""
    ordered = sorted(items, key=lambda item: item[1])
    heights = [height for _, height, _ in ordered]
    for _ in range(50):
        for i in range(len(heights) - 1):
            short_of = gap - (heights[i + 1] - heights[i])
            if short_of > 1e-9:
                heights[i] -= short_of / 2
                heights[i + 1] += short_of / 2
    return [(what, height, i) for (what, _, i), height in zip(ordered, heights, strict=True)]


def thinned(widths: Sequence[int], others: Collection[int], apart: float) -> list[int]:
    """Widths whose labels do not touch: those at least a factor of `apart` away from all that were chosen before.

    Chosen first are the student's full and smallest width, then its others from the largest down, then `others`.
    """
    kept: list[int] = []
    for width in [widths[-1], widths[0], *sorted(widths, reverse=True), *sorted(others)]:
        if all(max(width / k, k / width) >= apart for k in kept):
            kept.append(width)
    return sorted(kept)


def short(value: float, digits: int = 2) -> str:
    """.81 for 0.81; 1 for 1; a true minus for -0.2."""
    text = f"{abs(value):.{digits}f}"
    sign = "\N{MINUS SIGN}" if value < 0 and float(text) else ""
    return sign + (text.removeprefix("0") if text.startswith("0.") else text)


def thousands(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}\N{NO-BREAK SPACE}{name}"
    return f"{value:.0f}"


def to_svg(figure: Figure, name: str) -> str:
    """The drawing as an element for a page: colours by CSS variable, ids made unique with `name`, no XML head."""
    out = io.StringIO()
    with mpl.rc_context(STYLE):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    for variable, (value, _) in COLOURS.items():
        svg = svg.replace(value, f"var(--{variable})")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"font: ([^;\"]*?)(\d[\d.]*px) [^;\"]*", r"font: \1\2 var(--font)", svg)
    svg = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'<svg([^>]*?) height="[^"]*"', r'<svg\1 aria-hidden="true"', svg)
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)


def to_png(figure: Figure, dpi: int = 180) -> bytes:
    out = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def describe_scores(scores: Scores, dataset: DataSet, probe: str) -> str:
    """What the plot shows, for those who do not see it."""
    parts = []
    chosen = [r for r in scores.rows if (r.dataset, r.protocol) == (dataset.name, probe)]
    for name in dict.fromkeys(r.encoder for r in chosen):
        rows = sorted((r for r in chosen if r.encoder == name), key=lambda r: r.width)
        parts.append(f"{name}: " + ", ".join(f"{short(r.score)} at {r.width}" for r in rows))
    return f"{capital(PROTOCOLS[probe].title)} on {dataset.name} against width. " + "; ".join(parts) + "."
