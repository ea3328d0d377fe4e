"""The parts of the report that are tables: scores by width, paired differences, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from pathryoshka.evaluate.pictures import describe_scores, drawn, score_figure, short, thousands, to_svg
from pathryoshka.evaluate.scores import PCA, TEACHERS_MEAN, Cost, DataSet, Row, Scores
from pathryoshka.evaluate.scoring import DRAWN, PROTOCOLS, UNITS
from pathryoshka.evaluate.swaps import chance
from pathryoshka.page import capital, drawing, table

SWAPS = (
    "Better or worse where the 95 % interval leaves out 0. Swap p: how often the difference is as large when units "
    "change sides at random; each row by itself. Few units never give a small p: five none below .06."
)


def with_interval(row: Row) -> str:
    return f"{short(row.score)} <small>[{short(row.low)}&ndash;{short(row.high)}]</small>"


def plural(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def data_set_part(scores: Scores, dataset: DataSet) -> str:
    """Heading, plot and numbers of one data set."""
    marks = (("PHANTOM", dataset.phantom), ("SEEN", dataset.seen))
    tags = "".join(f'<span class="tag">{tag}</span>' for tag, on in marks if on)
    classes = ", ".join(f"{escape(label)} {n}" for label, n in dataset.labels.items())
    units = (
        "each a unit of its own" if dataset.unit == dataset.thing else f"of {plural(dataset.num_groups, dataset.unit)}"
    )
    caption = (
        f"{capital(UNITS[dataset.task])}, {dataset.how_scored}; band and bars: 95 % "
        f"interval over {dataset.unit}s. Horizontal lines: teachers, with all their numbers."
    )
    name = "".join(c if c.isalnum() else "-" for c in dataset.name)
    protocols = drawn(scores, dataset)
    wide, narrow = (to_svg(score_figure(scores, dataset, narrow=n), f"{name}-{int(n)}") for n in (False, True))
    says = " ".join(describe_scores(scores, dataset, protocol) for protocol in protocols)
    first, *more = (score_table(scores, dataset, protocol) for protocol in protocols)
    folded = "".join(
        f"<details><summary>The same by {PROTOCOLS[protocol].title}</summary>{other}</details>"
        for protocol, other in zip(protocols[1:], more, strict=True)
    )
    return (
        f"<h3>{escape(dataset.name)}{tags}</h3>\n"
        f'<p class="faint">{plural(dataset.num_tiles, dataset.thing)} {units}: {classes}</p>\n'
        f"{drawing(wide, narrow, caption, says)}\n{first}\n{difference_table(scores, dataset)}\n{folded}"
    )


def score_table(scores: Scores, dataset: DataSet, probe: str) -> str:
    """Encoders down, widths across."""
    rows = [r for r in scores.rows if (r.dataset, r.protocol) == (dataset.name, probe)]
    widths = sorted({r.width for r in rows})
    body: list[tuple[str, list[str]]] = []
    for name, kind in dict.fromkeys((r.encoder, r.kind) for r in sorted(rows, key=order_of_kind)):
        mine = {r.width: r for r in rows if r.encoder == name}
        cells = [with_interval(mine[w]) if w in mine else "" for w in widths]
        body.append((kind, [f"{swatch(scores, name, kind)}{escape(name)}", *cells]))
    return table([PROTOCOLS[probe].title, *map(str, widths)], body)


def order_of_kind(row: Row) -> int:
    return ("student", "teacher", "other", "pca", "start", "random").index(row.kind)


def swatch(scores: Scores, name: str, kind: str) -> str:
    whole = [*scores.names("teacher"), *scores.names("other")]
    colour = f"teacher{whole.index(name) % 5}" if kind in ("teacher", "other") else kind
    return f'<span class="key" style="background: var(--{colour})"></span>'


def difference_table(scores: Scores, dataset: DataSet) -> str:
    """Paired differences of the score that counts: full width against others, the smallest width against the full."""
    if not scores.widths:
        return ""
    full, smallest = scores.widths[-1], scores.widths[0]
    against = {TEACHERS_MEAN, PCA, *scores.names("start"), *scores.names("random")}
    rows = []
    for d in scores.differences:
        asked = (d.width == full and d.other in against) or (d.width == smallest and d.other == d.encoder)
        if d.dataset != dataset.name or d.protocol != DRAWN[dataset.task][0] or not asked:
            continue
        css = "better" if d.low > 0 else "worse" if d.high < 0 else ""
        who = f"against {escape(d.other)}" if d.width == full else f"first {d.width} against all"
        value = f"{points(d.value)} <small>[{points(d.low)} to {points(d.high)}]</small>"
        verdict = f'<span class="{css}">{css or "unclear"}</span>'
        rows.append(("", [who, value, verdict, escape(chance(d.p))]))
    return table([f"all {full} numbers, paired", "points", "", "swap p"], rows, SWAPS) if rows else ""


def points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def cost_table(costs: Sequence[Cost], licences: Mapping[str, str]) -> str:
    shown = sorted((c for c in costs if c.kind in ("student", "teacher", "other")), key=lambda c: c.kind != "student")
    most = max(c.num_params for c in shown)
    whole = [c.encoder for c in shown if c.kind != "student"]
    colours = ["student" if c.kind == "student" else f"teacher{whole.index(c.encoder) % 5}" for c in shown]
    rows: list[tuple[str, list[str]]] = []
    for c, colour in zip(shown, colours, strict=True):
        bar = f'<span class="bar" style="width: {7 * c.num_params / most:.2f}rem; background: var(--{colour})"></span>'
        flop = f"{c.gflop:.3g}" if c.gflop is not None else "not counted"
        licence = escape(licences.get(c.encoder, "")) or "&ndash;"
        rows.append((c.kind, [escape(c.encoder), thousands(c.num_params), bar, flop, str(c.width), licence]))
    return table(
        ["encoder", "parameters", "", "GFLOP a tile", "numbers", "licence"],
        rows,
        "Parameters without classifier; multiplying and adding are two operations; each encoder at its own input size.",
    )
