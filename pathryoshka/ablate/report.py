"""The ablation as one page: every twin's curve on each data set, and the answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from pathryoshka.ablate.table import Ablation, Question, Score
from pathryoshka.ablate.twins import ALL
from pathryoshka.evaluate.pictures import MARKERS, STYLE, furnish, light, short, spread, to_svg
from pathryoshka.evaluate.statistics import Estimate
from pathryoshka.evaluate.tables import points
from pathryoshka.page import drawing, page, table

PROTOCOL = "linear"


def render(name: str, found: Ablation, says: Mapping[str, str]) -> str:
    """The page as text; `says`: twin -> what it is, in words."""
    datasets = list(dict.fromkeys(s.dataset for s in found.scores))
    parts = [f"<h1>Pathryoshka &middot; {escape(name)}</h1>", f'<p class="lead">{headline(found)}</p>']
    for i, dataset in enumerate(datasets):
        scores = [s for s in found.scores if (s.dataset, s.protocol) == (dataset, PROTOCOL)]
        wide, narrow = (to_svg(curves(scores, narrow=n), f"twins-{i}-{int(n)}") for n in (False, True))
        caption = "Balanced accuracy of a linear probe, mean over seeds; bars: one standard deviation of the seeds."
        parts += [f"<h3>{escape(dataset)}</h3>", drawing(wide, narrow, caption, in_words(dataset, scores))]
    parts += ["<h2>What sets them apart</h2>", questions_table(found, PROTOCOL)]
    parts.append(f"<details><summary>By nearest neighbours</summary>{questions_table(found, 'knn')}</details>")
    parts.append("<h2>The twins</h2>")
    parts.append(table(["twin", "what it is"], [("", [escape(k), escape(v)]) for k, v in says.items()]))
    if found.failed:
        lost = "".join(f"<li>{escape(run)}: {escape(why)}</li>" for run, why in found.failed.items())
        parts.append(f'<div class="warn"><b>Not trained</b><ul>{lost}</ul></div>')
    return page(f"Pathryoshka: {name}", "\n".join(parts))


def headline(found: Ablation) -> str:
    """The first question that was asked, answered in a sentence."""
    q = next((q for q in found.questions if q.protocol == PROTOCOL), None)
    if q is None:
        return "Nothing to compare yet."
    e = q.overall.mean
    sets = "on the data set" if len(q.contrasts) == 1 else f"on average over {len(q.contrasts)} data sets"
    says = escape(q.says[0].upper() + q.says[1:])
    return f"{says}: <b>{points(e.value)}</b> points {sets} ({interval(e)}), {verdict(e)}."


def interval(e: Estimate) -> str:
    return f"{points(e.low)} to {points(e.high)}"


def verdict(e: Estimate) -> str:
    css = "better" if e.low > 0 else "worse" if e.high < 0 else "unclear"
    return f'<span class="{css}">{css}</span>'


def questions_table(found: Ablation, protocol: str) -> str:
    asked = [q for q in found.questions if q.protocol == protocol]
    if not asked:
        return ""
    datasets = list(dict.fromkeys(c.dataset for q in asked for c in q.contrasts))
    rows = [("", [escape(q.says), *(cell(q, d) for d in datasets), over_all(q)]) for q in asked]
    caption = "Points, paired by group; 95 % intervals over groups and seeds. Below: what seeds alone explain."
    return table(["question", *datasets, "mean"], rows, caption)


def cell(q: Question, dataset: str) -> str:
    c = next((c for c in q.contrasts if c.dataset == dataset), None)
    if c is None:
        return ""
    d = c.difference
    noise = f"<br><small>seeds {100 * c.noise:.1f}</small>" if math.isfinite(c.noise) else ""
    return f"{points(d.value)} <small>[{interval(d)}]</small> {verdict(d)}{noise}"


def over_all(q: Question) -> str:
    e = q.overall.mean
    return f"{points(e.value)} <small>[{interval(e)}]</small> {verdict(e)}"


def curves(scores: list[Score], *, narrow: bool = False) -> Figure:
    twins = list(dict.fromkeys(s.twin for s in scores))
    widths = sorted({s.width for s in scores})
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.1, 4.2) if narrow else (9.4, 4.6), layout="constrained", facecolor=light("paper"))
        ax = figure.subplots()
        ends = []
        for i, twin in enumerate(twins):
            line = sorted((s for s in scores if s.twin == twin), key=lambda s: s.width)
            main = twin == ALL
            colour = light("student") if main else light(f"teacher{(i - 1) % 5}")
            shift = 1.02 ** (i - len(twins) / 2)
            error = [s.spread if math.isfinite(s.spread) else 0.0 for s in line]
            ax.errorbar(
                [s.width * shift for s in line],
                [s.mean for s in line],
                error,
                color=colour,
                marker="o" if main else MARKERS[(i - 1) % 5],
                markersize=6 if main else 4,
                linewidth=2.6 if main else 1.2,
                linestyle="-" if i < 6 else (0, (4, 2)),
                zorder=5 if main else 3,
            )
            ends.append((twin, line[-1].mean, i))
        low, high = ax.get_ylim()
        for twin, height, i in spread(ends, 0.05 * (high - low)):
            value = next(v for t, v, _ in ends if t == twin)
            colour = light("student") if twin == ALL else light(f"teacher{(i - 1) % 5}")
            ax.annotate(f"{twin} {short(value, 3)}", (1.02, height), xycoords=("axes fraction", "data"), va="center",
                        color=colour, fontweight="bold" if twin == ALL else None, annotation_clip=False)  # fmt: skip
        ax.set_xscale("log", base=2)
        ax.set_xticks(widths)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        ax.set_xlabel("numbers kept of the embedding", color=light("faint"))
        ax.set_ylabel("balanced accuracy", color=light("faint"))
        furnish(ax)
    return figure


def in_words(dataset: str, scores: list[Score]) -> str:
    parts = []
    for twin in dict.fromkeys(s.twin for s in scores):
        line = sorted((s for s in scores if s.twin == twin), key=lambda s: s.width)
        parts.append(f"{twin}: " + ", ".join(f"{short(s.mean)} at {s.width}" for s in line))
    return f"Balanced accuracy on {dataset} against width. " + "; ".join(parts) + "."
