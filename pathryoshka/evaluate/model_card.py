"""The part of a model card that says what a student is worth: scores by width with intervals, on what data, under whose
licence, and what its distillation had seen. Markdown; beside the CSV of an evaluation, and in the card of an export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pathryoshka.evaluate.scores import Cost, DataSet, Difference, Row, Scores
from pathryoshka.evaluate.scoring import DRAWN, PROTOCOLS
from pathryoshka.evaluate.swaps import chance
from pathryoshka.export.seen import Seen
from pathryoshka.page import capital

HEADING = "## What each width is worth"
NOTHING = (
    "Not evaluated. Nothing here says what this student is worth on any tissue: what its teachers score is not what it "
    "scores. `pathryoshka evaluate` scores every width on labelled tiles of patients that distillation did not see."
)


@dataclass(frozen=True)
class Saw:
    """How much a distillation saw: tiles, and names of slides and patients."""

    num_tiles: int
    num_names: int


def saw_of(seen: Sequence[Seen]) -> tuple[Saw, ...]:
    return tuple(Saw(one.num_tiles, len(one.names)) for one in seen)


def model_card_section(
    scores: Scores | None, saw: Sequence[Saw] = (), licences: Mapping[str, str] | None = None
) -> str:
    """Markdown from its heading to a line end.

    Args:
        saw: what each student's distillation saw; none where nobody knows.
        licences: of encoders, by name, where they are known.
    """
    if scores is None:
        return f"{HEADING}\n\n{NOTHING}\n"
    parts = [HEADING, intro(scores)]
    for dataset in scores.datasets:
        parts += data_set_part(scores, dataset)
    parts += ["### What an encoder costs", cost_table(scores.costs, licences or {})]
    parts += ["### What distillation saw", *(what_was_seen(one) for one in saw)]
    if not saw:
        parts.append("Not known, so seen tiles and patients could not be refused: scores may flatter the student.")
    if scores.notes:
        parts += ["### What to keep in mind", "\n".join(f"- {note}" for note in scores.notes)]
    return "\n\n".join(parts) + "\n"


def intro(scores: Scores) -> str:
    widths = ", ".join(map(str, scores.widths))
    cut = f" Widths {widths}: the first numbers of the embedding, normalised again." if widths else ""
    return (
        f"Frozen embeddings; probes learn and choose on units (patients, where known) apart from those scored.{cut} "
        "In brackets 95 % intervals over units. One training run: they do not say what another seed would give."
    )


def data_set_part(scores: Scores, dataset: DataSet) -> list[str]:
    marks = (("PHANTOM tissue, drawn by a program", dataset.phantom), ("SEEN in distillation: flatters", dataset.seen))
    shown = "".join(f" ({mark})" for mark, on in marks if on)
    rows = [r for r in scores.rows if r.dataset == dataset.name]
    there = [p for p in DRAWN[dataset.task] if any(r.protocol == p for r in rows)]
    parts = [f"### {dataset.name}{shown}", about(dataset)]
    for protocol in there:
        said = f"{capital(PROTOCOLS[protocol].title)}: {PROTOCOLS[protocol].metric}."
        parts += [said, width_table([r for r in rows if r.protocol == protocol])]
    others = [p for p in dict.fromkeys(r.protocol for r in rows) if p not in there]
    if others:
        parts += ["Other protocols, each encoder with all its numbers:", protocol_table(rows, others)]
    found = [d for d in scores.differences if (d.dataset, d.protocol) == (dataset.name, DRAWN[dataset.task][0])]
    if found:
        parts += ["Paired differences in points, and the p of a swap test:", difference_table(found)]
    return parts


def about(dataset: DataSet) -> str:
    what = f"{len(dataset.labels)} classes" if dataset.task == "classification" else ", ".join(dataset.labels)
    guess = "" if dataset.chance is None else f" Chance is {dataset.chance:.2f}."
    licence = f" Licence of the data: {dataset.licence}." if dataset.licence else " Licence of the data: not recorded."
    size = f"{dataset.num_tiles:,} {dataset.thing}s of {dataset.num_groups:,} {dataset.unit}s"
    return f"{size}, {what}; {dataset.how_scored}.{guess}{licence}"


def width_table(rows: Sequence[Row]) -> str:
    """Encoders down, widths across."""
    widths = sorted({r.width for r in rows})
    lines = ["| encoder | " + " | ".join(map(str, widths)) + " |", "|---|" + "---|" * len(widths)]
    for name in dict.fromkeys(r.encoder for r in rows):
        mine = {r.width: r for r in rows if r.encoder == name}
        lines.append(f"| {name} | " + " | ".join(cell(mine.get(w)) for w in widths) + " |")
    return "\n".join(lines)


def protocol_table(rows: Sequence[Row], protocols: Sequence[str]) -> str:
    """Protocols down, encoders across, each at its largest width."""
    full = {name: max(r.width for r in rows if r.encoder == name) for name in dict.fromkeys(r.encoder for r in rows)}
    lines = ["| protocol | " + " | ".join(f"{n} {w}" for n, w in full.items()) + " |", "|---|" + "---|" * len(full)]
    for protocol in protocols:
        mine = {r.encoder: r for r in rows if r.protocol == protocol and r.width == full[r.encoder]}
        lines.append(f"| {PROTOCOLS[protocol].title} | " + " | ".join(cell(mine.get(name)) for name in full) + " |")
    return "\n".join(lines)


def cell(row: Row | None) -> str:
    return "" if row is None else f"{row.score:.3f} [{row.low:.2f}, {row.high:.2f}]"


def difference_table(found: Sequence[Difference]) -> str:
    """Of the full and the smallest width of each student."""
    lines = ["| | against | points | swap p |", "|---|---|---|---|"]
    for d in found:
        mine = [one.width for one in found if one.encoder == d.encoder]
        if d.width not in (min(mine), max(mine)):
            continue
        other = f"{d.other} {d.other_width}" if d.other_width else d.other
        points = f"{100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        lines.append(f"| {d.encoder} {d.width} | {other} | {points} | {chance(d.p)} |")
    return "\n".join(lines)


def cost_table(costs: Sequence[Cost], licences: Mapping[str, str]) -> str:
    lines = ["| encoder | numbers | parameters | GFLOP a tile | licence |", "|---|---|---|---|---|"]
    for c in costs:
        flop = "not counted" if c.gflop is None else f"{c.gflop:.3g}"
        licence = licences.get(c.encoder, "not recorded")
        lines.append(f"| {c.encoder} | {c.width} | {c.num_params / 1e6:.2f} M | {flop} | {licence} |")
    return "\n".join(lines)


def what_was_seen(saw: Saw) -> str:
    return (
        f"{saw.num_tiles:,} tiles; `seen.parquet` of the export holds keyed hashes of their {saw.num_names:,} slides "
        "and patients, and perceptual hashes of tiles. Whoever is among them is refused when scored, unless "
        "asked for; such data sets are marked SEEN."
    )
