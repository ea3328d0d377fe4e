"""The report of a run as one HTML file: what was won, what it cost, and what the figures cannot say.

Everything in it comes from values that lie beside the run (scores, pictures of neighbours, the log, the resolved
config), so it can be written again without a student or a teacher at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import yaml

from pathryoshka import config, storage
from pathryoshka.evaluate.deeper import confusion_part, over_data_sets, protocols_table, token_part, worst_part
from pathryoshka.evaluate.details import Details
from pathryoshka.evaluate.neighbours import Panel, Picture, Query
from pathryoshka.evaluate.pictures import drawn, loss_figure, score_figure, short, thousands, to_png, to_svg
from pathryoshka.evaluate.scatter import describe_prices, price_figure
from pathryoshka.evaluate.scores import DataSet, Row, Scores
from pathryoshka.evaluate.scoring import PROTOCOLS, UNITS
from pathryoshka.evaluate.tables import cost_table, data_set_part, plural, points
from pathryoshka.page import drawing, page, table


@dataclass(frozen=True)
class Story:
    """What a report tells.

    Attributes:
        scores, details: from an evaluation. The first data set is the one in the headline.
        run: the resolved config.
        metrics: lines of the run's log.
        floors: `<teacher>/<kind>` -> fraction that a linear map from as many numbers must leave unexplained.
        licences: of the teachers. seconds: what each stage took. machine: in words.
        notes: added to those of the scores.
    """

    scores: Scores
    details: Details = field(default_factory=Details)
    run: config.Run | None = None
    metrics: Sequence[Mapping[str, Any]] = ()
    floors: Mapping[str, float] = field(default_factory=dict)
    licences: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    machine: str = ""
    notes: Sequence[str] = ()


def write_report(to: str, story: Story, cfg: config.Storage) -> None:
    """Writes the page to `to` (a file or URI) and, beside it, its first picture as `widths.png`."""
    picture = to_png(score_figure(story.scores, story.scores.datasets[0], alone=True))
    folder, slash, _ = str(to).rpartition("/")
    storage.write_bytes(storage.join(folder, "widths.png") if slash else "widths.png", picture, cfg)
    storage.write_bytes(str(to), render(story).encode(), cfg)


def render(story: Story) -> str:
    """The page as text."""
    name = story.run.name if story.run else "student"
    parts = [
        f"<h1>Pathryoshka &middot; {escape(name)}</h1>",
        f'<p class="lead">{headline(story.scores)}</p>',
        *(f'<p class="warn">{escape(text)}</p>' for text in story.scores.notes if text.startswith("SEEN")),
        phantom_warning(story.scores),
        cards(story.scores) if story.scores.names("student") else "",
        "<h2>What each width is worth</h2>",
        *(data_set_part(story.scores, dataset) for dataset in story.scores.datasets),
        *over_data_sets(story.scores),
        "<h2>What it costs</h2>",
        *price_part(story.scores),
        cost_table(story.scores.costs, story.licences),
        *loss_part(story),
        *neighbours_part(story.details.panels),
        *token_part(story.details),
        *closer_look(story),
        "<h2>What to keep in mind</h2>",
        f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in remarks(story))}</ul>",
        *run_part(story),
    ]
    return page(f"Pathryoshka: {name}", "\n".join(parts))


# ---------------------------------------------------------------- the first screen


def mean_score(rows: Sequence[Row]) -> float:
    return sum(row.score for row in rows) / len(rows)


def key_rows(scores: Scores) -> tuple[DataSet, Row, Row, list[Row]]:
    """First data set; the student at full width and at the width nearest to an eighth of it; the teachers: by the score
    that counts there."""
    dataset = scores.datasets[0]
    student = scores.names("student")[0]
    protocol = drawn(scores, dataset)[0]
    full = scores.row(dataset.name, protocol, student)
    assert full is not None
    eighth = min(scores.widths, key=lambda width: abs(width / full.width - 1 / 8))
    small = scores.row(dataset.name, protocol, student, eighth)
    assert small is not None
    teachers = [scores.row(dataset.name, protocol, name) for name in scores.names("teacher")]
    return dataset, full, small, [row for row in teachers if row]


def headline(scores: Scores) -> str:
    if not scores.names("student"):
        sets = plural(len(scores.datasets), "data set")
        return f"{plural(len(scores.costs), 'encoder')} side by side on {sets}, by unseen unit."
    dataset, full, small, teachers = key_rows(scores)
    cost = next(c for c in scores.costs if c.kind == "student")
    others = [c for c in scores.costs if c.kind == "teacher"]
    text = f"A student of {thousands(cost.num_params)} parameters"
    if others:
        text += f", where its {plural(len(others), 'teacher')} have {span([c.num_params for c in others])} each,"
    seen = "seen and unseen" if dataset.seen else "unseen"
    interval = f"[{short(full.low)}&ndash;{short(full.high)}]"
    what = "" if dataset.task == "classification" else f" ({escape(PROTOCOLS[full.protocol].title)})"
    text += f" scores <b>{short(full.score)}</b> {interval}{what} on {seen} {dataset.unit}s of {escape(dataset.name)}"
    if teachers:
        text += f"; the teachers reach {short(mean_score(teachers))} on average"
    text += "." if dataset.chance is None else f", guessing {short(dataset.chance)}."
    if small.width < full.width:
        text += f" The first {small.width} of its {full.width} numbers alone reach <b>{short(small.score)}</b>."
    return text


def span(values: Sequence[float]) -> str:
    low, high = thousands(min(values)), thousands(max(values))
    return low if low == high else f"{low} to {high}"


def phantom_warning(scores: Scores) -> str:
    names = ", ".join(d.name for d in scores.datasets if d.phantom)
    if not names:
        return ""
    return (
        f'<p class="warn"><b>PHANTOM.</b> {escape(names)} is tissue drawn by a program. It shows that the machinery '
        "works; it says nothing about patients.</p>"
    )


def cards(scores: Scores) -> str:
    dataset, full, small, teachers = key_rows(scores)
    cost = next(c for c in scores.costs if c.kind == "student")
    others = [c for c in scores.costs if c.kind == "teacher"]
    shown = [("parameters", thousands(cost.num_params), share([c.num_params for c in others], cost.num_params))]
    if cost.gflop is not None:
        flops = [c.gflop for c in others if c.gflop is not None]
        shown.append(("GFLOP a tile", f"{cost.gflop:.3g}", share(flops, cost.gflop)))
    against = UNITS[dataset.task] if dataset.chance is None else f"chance is {short(dataset.chance)}"
    if teachers:
        against = f"{full.score / mean_score(teachers):.0%} of the teachers' mean"
    shown.append((f"score, all {full.width} numbers", short(full.score), against))
    if small.width < full.width:
        change = f"{points(small.score - full.score)} points"
        shown.append((f"score, first {small.width} numbers", short(small.score), change))
    inner = "".join(
        f'<div class="card"><span>{escape(what)}</span><b>{escape(value)}</b><span>{escape(beside)}</span></div>'
        for what, value, beside in shown
    )
    return f'<div class="cards">{inner}</div>'


def share(others: Sequence[float], mine: float) -> str:
    return f"{mine / (sum(others) / len(others)):.0%} of a teacher's mean" if sum(others) else ""


def price_part(scores: Scores) -> list[str]:
    wide, narrow = price_figure(scores), price_figure(scores, narrow=True)
    if wide is None or narrow is None:
        return []
    caption = "Upper left is good and cheap. A student's dots are its widths: alike to compute, unlike to keep."
    return [drawing(to_svg(wide, "price-0"), to_svg(narrow, "price-1"), caption, describe_prices(scores))]


# ---------------------------------------------------------------- training, neighbours, run


def closer_look(story: Story) -> list[str]:
    """Behind a fold for each data set: the other protocols, classes, confusions, worst tiles."""
    parts = []
    for dataset in story.scores.datasets:
        encoders = [*story.scores.names("student"), *story.scores.names("teacher"), *story.scores.names("other")]
        inner = [
            protocols_table(story.scores, dataset),
            confusion_part(story.details, dataset, encoders),
            worst_part(story.details, dataset),
        ]
        if any(inner):
            parts.append(f"<details><summary>{escape(dataset.name)}: other protocols, classes, worst tiles</summary>"
                         f"{''.join(inner)}</details>")  # fmt: skip
    return ["<h2>A closer look</h2>", *parts] if parts else []


def loss_part(story: Story) -> list[str]:
    wide = loss_figure(story.metrics, story.floors)
    narrow = loss_figure(story.metrics, story.floors, narrow=True)
    if wide is None or narrow is None:
        return []
    last = {k: v for k, v in story.metrics[-1].items() if k.startswith("unexplained/") and k.count("/") == 1}
    ends = ", ".join(f"{name.split('/')[1]} {short(value)}" for name, value in last.items())
    floor = " Dashed: what no linear map from as many numbers could explain (PCA)." if story.floors else ""
    caption = f"Share of a teacher's variance that the student's heads do not predict; 1 is predicting the mean.{floor}"
    says = f"Fraction unexplained against views. At the end: {ends}."
    return ["<h2>How it learned</h2>", drawing(to_svg(wide, "loss-0"), to_svg(narrow, "loss-1"), caption, says)]


def neighbours_part(panels: Sequence[Panel]) -> list[str]:
    if not panels:
        return []
    parts = [
        "<h2>What it holds to be alike</h2>",
        "<p>Queries (left) and the five most similar tiles of other patients, with their cosine similarity. Solid "
        "green frame: of the query's class; dashed red: of another. Queries are not picked: they are the first of each "
        "class by a hash of their names.</p>",
    ]
    for panel in panels:
        widths = sorted(panel.queries[0].nearest) if panel.queries else []
        said = ", ".join(f"{panel.agreement(w):.0%} at {w} numbers" for w in widths)
        parts.append(f'<h3>{escape(panel.dataset)} <span class="faint">same class: {said}</span></h3>')
        parts.append(f'<div class="queries">{"".join(query_part(query, widths) for query in panel.queries)}</div>')
    return parts


def query_part(query: Query, widths: Sequence[int]) -> str:
    rows = ""
    for width in widths:
        tiles = (tile(p, "same" if p.label == query.query.label else "other") for p in query.nearest[width])
        rows += f'<p>{width} numbers</p><div class="row">{"".join(tiles)}</div>'
    return f'<div class="query">{tile(query.query, "")}<div>{rows}</div></div>'


def tile(picture: Picture, css: str) -> str:
    beside = f"<br>{short(picture.similarity)}" if css else ""
    alike = f", similarity {short(picture.similarity)}" if css else ""
    says = escape(f"tile {picture.tile_id}, class {picture.label}{alike}")
    return (
        f'<figure class="{css}"><img src="data:image/jpeg;base64,{picture.jpeg}" alt="{says}" title="{says}">'
        f"<figcaption>{escape(picture.label)}{beside}</figcaption></figure>"
    )


def remarks(story: Story) -> list[str]:
    return [
        *story.scores.notes,
        *story.notes,
        "One training run: the intervals are over patients, not over seeds.",
        "Penalty and number of neighbours are chosen on units apart from those scored, alike for every encoder.",
    ]


def run_part(story: Story) -> list[str]:
    parts = []
    if story.seconds or story.machine:
        parts.append("<h2>What was run</h2>")
        if story.machine:
            parts.append(f"<p>{escape(story.machine)}</p>")
        rows = [("", [escape(stage), duration(seconds)]) for stage, seconds in story.seconds.items()]
        if rows:
            total = ("student", ["together", duration(sum(story.seconds.values()))])
            parts.append(table(["stage", "time"], [*rows, total]))
    if story.run is not None:
        tree = yaml.safe_dump(story.run.model_dump(mode="json"), sort_keys=False)
        parts.append(f"<details><summary>The resolved config of the run</summary><pre>{escape(tree)}</pre></details>")
    return parts


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
