"""The part of the report that a reviewer spends an hour in: every protocol, classes, confusions, the worst tiles."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pathryoshka.evaluate.details import Confusion, Details, Worst
from pathryoshka.evaluate.pictures import short
from pathryoshka.evaluate.scores import PCA, TEACHERS_MEAN, DataSet, Difference, Row, Scores
from pathryoshka.evaluate.scoring import ALWAYS, DRAWN, PROTOCOLS
from pathryoshka.evaluate.statistics import Estimate, over_benchmarks
from pathryoshka.evaluate.tables import points, with_interval
from pathryoshka.page import table

NOT_A_SCORE = ("stain/cosine",)
"""Says something about an embedding, but more of it is not better."""


def over_data_sets(scores: Scores) -> list[str]:
    """Mean and median over data sets of what the student's full width gains or loses; nothing for a single one."""
    if len(scores.datasets) < 2:
        return []
    student = scores.names("student")[0] if scores.names("student") else ""
    full = max((r.width for r in scores.rows if r.encoder == student), default=0)
    first: list[tuple[str, list[str]]] = []
    more: list[tuple[str, list[str]]] = []
    for protocol in dict.fromkeys(d.protocol for d in scores.differences if d.protocol not in NOT_A_SCORE):
        mine = [d for d in scores.differences if (d.protocol, d.encoder, d.width) == (protocol, student, full)]
        num_sets = len({r.dataset for r in scores.rows if r.protocol == protocol})
        for other in (TEACHERS_MEAN, PCA, *scores.names("start"), *scores.names("random")):
            some = [d for d in mine if d.other == other]
            if len(some) > 1 and len(some) == num_sets:
                found = over_benchmarks([estimate(d) for d in some])
                sign = 1 if PROTOCOLS[protocol].higher_is_better else -1
                spans = [span(found.mean, sign), span(found.median, sign)]
                (first if protocol in ALWAYS else more).append(
                    ("", [escape(PROTOCOLS[protocol].title), escape(other), *spans, str(num_sets)])
                )
    if not first:
        return []
    head = ["protocol", "all numbers against", "mean, points", "median, points", "data sets"]
    caption = "Over the data sets that have the score; 95 % intervals over their units, for these data sets."
    others = f"<details><summary>The other protocols</summary>{table(head, more)}</details>" if more else ""
    return ["<h2>Over all data sets</h2>", table(head, first, caption), others]


def estimate(d: Difference) -> Estimate:
    return Estimate(d.value, d.low, d.high, d.error, d.freedom)


def span(found: Estimate, sign: int) -> str:
    """`sign`: 1 where more is better, else -1."""
    clear = 1 if found.low > 0 else -1 if found.high < 0 else 0
    css = {1: "better", -1: "worse", 0: "unclear"}[sign * clear]
    value = f"{points(found.value)} <small>[{points(found.low)} to {points(found.high)}]</small>"
    return f'{value} <span class="{css}">{css}</span>'


def protocols_table(scores: Scores, dataset: DataSet) -> str:
    """Every protocol but the two that are drawn: encoders at their largest width, and students at their smallest."""
    rows = [r for r in scores.rows if r.dataset == dataset.name]
    protocols = [p for p in dict.fromkeys(r.protocol for r in rows) if p not in DRAWN[dataset.task]]
    if not protocols:
        return ""
    shown: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        widths = [r.width for r in rows if r.encoder == row.encoder]
        if row.width == max(widths) or (row.kind == "student" and row.width == min(widths)):
            shown.setdefault((row.encoder, row.width), {})[row.protocol] = row
    best = {p: best_of(p, [s[p] for s in shown.values() if p in s]) for p in protocols}
    body: list[tuple[str, list[str]]] = []
    for (encoder, width), found in shown.items():
        cells = [f"{escape(encoder)} <small>{width}</small>"]
        for protocol in protocols:
            text = with_interval(found[protocol]) if protocol in found else ""
            cells.append(f"<b>{text}</b>" if protocol in found and found[protocol] is best[protocol] else text)
        body.append(("", cells))  # no row of the student's: bold says which is best
    said = "; ".join(f"{PROTOCOLS[p].title}: {PROTOCOLS[p].metric}" for p in protocols)
    return table(["encoder", *(PROTOCOLS[p].title for p in protocols)], body, f"Best in bold. {said}.")


def best_of(protocol: str, rows: Sequence[Row]) -> Row:
    sign = 1 if PROTOCOLS[protocol].higher_is_better else -1
    return max(rows, key=lambda r: sign * r.score)


def confusion_part(details: Details, dataset: DataSet, encoders: Sequence[str]) -> str:
    """Recall a class of each encoder, and the student's confusions at full width."""
    found = [c for c in details.confusions if c.dataset == dataset.name and c.encoder in encoders]
    if not found:
        return ""
    labels = found[0].labels
    body = [
        ("", [f"{escape(c.encoder)} <small>{c.width}</small>", *(share(c.recalls.get(label)) for label in labels)])
        for c in found
    ]
    text = table(["class recognised", *labels], body, "Share of each class's tiles that the linear probe recognised.")
    return text + confusion_table(max(found[: 2 if len(found) > 1 else 1], key=lambda c: c.width))


def share(value: float | None) -> str:
    return short(value) if value is not None else "&ndash;"


def confusion_table(c: Confusion) -> str:
    body = []
    for i, label in enumerate(c.labels):
        total = sum(c.counts[i]) or 1
        cells = [escape(label)]
        for j, n in enumerate(c.counts[i]):
            tint = f' style="background: color-mix(in srgb, var(--student) {45 * n / total:.0f}%, transparent)"'
            cells.append(f'<span class="cell"{tint}>{n}</span>' if (n and i != j) or i == j else "")
        body.append(("", cells))
    caption = f"{c.encoder}, {c.width} numbers: tiles of the class in the row that were said to be of the one above."
    return table(["is \\ said", *c.labels], body, caption)


def worst_part(details: Details, dataset: DataSet) -> str:
    return "".join(worst_pictures(w) for w in details.worst if w.dataset == dataset.name)


def worst_pictures(worst: Worst) -> str:
    tiles = "".join(
        f'<figure class="other"><img src="data:image/jpeg;base64,{p.jpeg}" '
        f'alt="{escape(f"tile {p.tile_id}: is {p.label}, said {said}")}" title="{escape(p.tile_id)}">'
        f"<figcaption>{escape(p.label)}<br>said {escape(said)}<br>{short(p.similarity)}</figcaption></figure>"
        for p, said in zip(worst.tiles, worst.said, strict=True)
    )
    return (
        f"<h4>Worst tiles of {escape(worst.encoder)}</h4>"
        '<p class="faint">Where the linear probe believed least in the true class (its probability below), one a '
        f'unit.</p><div class="worst">{tiles}</div>'
    )


def token_part(details: Details) -> list[str]:
    """Tiles and their tokens as colours at the smallest and the full width."""
    if not details.token_maps:
        return []
    shown = []
    for m in details.token_maps:
        says = escape(f"tile {m.tile_id}, class {m.label}")
        parts = [f'<img src="data:image/jpeg;base64,{m.jpeg}" alt="{says}" title="{says}">']
        parts += [
            f'<img src="data:image/png;base64,{png}" alt="{says}: its tokens at {width} numbers as colours">'
            for width, png in sorted(m.maps.items())
        ]
        widths = " | ".join(map(str, sorted(m.maps)))
        shown.append(
            f'<figure class="tokens">{"".join(parts)}<figcaption>{escape(m.label)} | {widths}</figcaption></figure>'
        )
    return [
        "<h2>What its tokens see</h2>",
        "<p>Tiles, and the first three principal components of their tokens as red, green and blue: at the smallest "
        "width and at all numbers a token has. Where a map follows the tissue, tokens do.</p>",
        f'<div class="token-maps">{"".join(shown)}</div>',
    ]
